// Writes a small checkpoint folder for read_with_h5py.py: sample_checkpoint FOLDER.
#include <cstdio>

#include "tests/checkpoint/sample_checkpoint.h"

int main(int argc, char** argv) {
  try {
    phalanx::check_usage(argc == 2, "usage: sample_checkpoint FOLDER");
    const phalanx::SampleCheckpoint<float> sample(argv[1], 7);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
