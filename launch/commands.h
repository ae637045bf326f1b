// The subcommands of `phalanx`. Each takes the arguments after its name and returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace phalanx {

using Arguments = std::vector<std::string>;

int run_train(const Arguments& arguments);
int run_prepare(const Arguments& arguments);
int run_evaluate(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_info(const Arguments& arguments);
int run_checkpoint(const Arguments& arguments);
int run_submit(const Arguments& arguments);
int run_status(const Arguments& arguments);
int run_cancel(const Arguments& arguments);
int run_supervise(const Arguments& arguments);
int run_study_command(const Arguments& arguments);

}  // namespace phalanx
