// HDF5 files: tensors, rows, attributes, publication, and errors that name file and object.
#include "data/hdf5_file.h"

#include <fmt/format.h>

#include <gmock/gmock.h>
#include <hdf5.h>

#include <cmath>
#include <thread>

#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Hdf5File, TensorsOfEveryTypeComeBack) {
  const TemporaryFolder folder;
  std::vector<float> f32 = {1.5F, -2.0F, 3.25F, 4.0F, 5.0F, 6.0F};
  std::vector<double> f64 = {0.1, 0.2};
  std::vector<BFloat16> bf16 = {1.0F, -0.5F, 3.0F};
  std::vector<int64_t> i64 = {int64_t{1} << 40, -1};
  std::vector<int32_t> i32 = {7};
  std::vector<uint8_t> u8 = {0, 255};
  {
    Hdf5File file = Hdf5File::create(folder / "w.h5");
    const auto put = [&](const char* name, const Tensor& tensor) {
      file.create_dataset(name, tensor.shape, tensor.dtype);
      file.write(name, tensor);
    };
    put("layers.00/attention/weight", cpu_tensor(f32.data(), {2, 3}));
    put("f64", cpu_tensor(f64.data(), {2}));
    put("bf16", cpu_tensor(bf16.data(), {1, 3, 1}));
    put("i64", cpu_tensor(i64.data(), {2, 1, 1, 1, 1}));
    put("i32", cpu_tensor(i32.data(), {}));
    put("u8", cpu_tensor(u8.data(), {2}));
    put("empty", cpu_tensor(u8.data(), {0, 4}));
    EXPECT_FALSE(file_exists(folder / "w.h5"));
    file.publish();
  }
  EXPECT_THAT(folder.files(), ElementsAre("w.h5"));
  const Hdf5File file = Hdf5File::open(folder / "w.h5");
  EXPECT_THAT(file.datasets(), ElementsAre("bf16", "empty", "f64", "i32", "i64",
                                           "layers.00/attention/weight", "u8"));
  const auto expect_same = [&]<class T>(const char* name, const std::vector<T>& expected) {
    std::vector<T> values(expected.size());
    EXPECT_EQ(file.dtype(name), DTypeOf<T>::value);
    file.read(name, cpu_tensor(values.data(), file.shape(name)));
    EXPECT_EQ(std::memcmp(values.data(), expected.data(), values.size() * sizeof(T)), 0) << name;
  };
  expect_same("layers.00/attention/weight", f32);
  expect_same("f64", f64);
  expect_same("bf16", bf16);
  expect_same("i64", i64);
  expect_same("i32", i32);
  expect_same("u8", u8);
  EXPECT_EQ(file.shape("i64").rank(), 5);
  EXPECT_EQ(file.shape("empty").to_string(), "[0, 4]");
}

TEST(Hdf5File, BlocksAreWrittenAndReadApart) {
  const TemporaryFolder folder;
  using Index = std::vector<int64_t>;
  std::vector<float> values = {0, 1, 2, 3, 4, 5, 6, 7};
  {
    Hdf5File file = Hdf5File::create(folder / "w.h5");
    file.create_dataset("w", {4, 2}, DType::f32);
    file.write_block("w", Index{3, 0}, cpu_tensor(values.data() + 6, {1, 2}));
    std::vector<float> left = {0, 2, 4};
    std::vector<float> right = {1, 3, 5};
    file.write_block("w", Index{0, 1}, cpu_tensor(right.data(), {3, 1}));
    file.write_block("w", Index{0, 0}, cpu_tensor(left.data(), {3, 1}));
    file.create_dataset("v", {5}, DType::f32);
    file.write_block("v", Index{2}, cpu_tensor(values.data(), {3}));
    file.publish();
  }
  const Hdf5File file = Hdf5File::open(folder / "w.h5");
  std::vector<float> whole(8);
  file.read("w", cpu_tensor(whole.data(), {4, 2}));
  EXPECT_EQ(whole, values);
  std::vector<float> block(2);
  file.read_block("w", Index{1, 1}, cpu_tensor(block.data(), {2, 1}));
  EXPECT_THAT(block, ElementsAre(3, 5));
  file.read_block("v", Index{3}, cpu_tensor(block.data(), {2}));
  EXPECT_THAT(block, ElementsAre(1, 2));
  EXPECT_THAT(message_of([&] {
                file.read_block("w", Index{3, 1}, cpu_tensor(block.data(), {1, 2}));
              }),
              HasSubstr("w is [4, 2]; a tensor [1, 2] at [3, 1] does not fit"));
  const auto read_at = [&](const Index& first, const Shape& shape) {
    file.read_block("w", first, cpu_tensor(block.data(), shape));
  };
  EXPECT_THROW(read_at({-1, 0}, {1, 2}), Error);
  EXPECT_THROW(read_at({0}, {1, 2}), Error);
  EXPECT_THROW(read_at({0, 0}, {2}), Error);
  EXPECT_THROW(file.read("w", cpu_tensor(block.data(), {1, 2})), Error);
}

TEST(Hdf5File, AttributesHoldLongTexts) {
  const TemporaryFolder folder;
  const std::string config(200'000, 'x');
  {
    Hdf5File file = Hdf5File::create(folder / "w.h5");
    file.create_dataset("g/w", {1}, DType::i64);
    file.set_attribute("/", "config", "first");
    file.set_attribute("/", "config", config);
    file.set_attribute("g", "kind", "");
    file.set_attribute("g/w", "unit", "tok\xC3\xA9n");
    file.publish();
  }
  const Hdf5File file = Hdf5File::open(folder / "w.h5");
  EXPECT_EQ(file.attribute("/", "config"), config);
  EXPECT_EQ(file.attribute("g", "kind"), "");
  EXPECT_EQ(file.attribute("g/w", "unit"), "tok\xC3\xA9n");
  EXPECT_FALSE(file.has_attribute("g/w", "config"));
  EXPECT_THAT(message_of([&] { file.attribute("g/w", "config"); }),
              HasSubstr("g/w has no attribute config"));
}

TEST(Hdf5File, ReadsAttributesOfFixedLength) {
  const TemporaryFolder folder;
  const std::string path = folder / "w.h5";
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, 8);
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = H5Acreate2(file, "a", type, space, H5P_DEFAULT, H5P_DEFAULT);
  H5Awrite(attribute, type, "abc\0\0\0\0\0");
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
  H5Fclose(file);
  EXPECT_EQ(Hdf5File::open(path).attribute("/", "a"), "abc");
}

TEST(Hdf5File, AnUnpublishedFileVanishes) {
  const TemporaryFolder folder;
  { Hdf5File::create(folder / "w.h5").create_dataset("w", {4, 2}, DType::f32); }
  EXPECT_THAT(folder.files(), IsEmpty());
}

TEST(Hdf5File, ErrorsNameFileAndObject) {
  const TemporaryFolder folder;
  EXPECT_THROW(Hdf5File::open(folder / "none.h5"), UsageError);
  EXPECT_THROW(Hdf5File::create(folder / "none/w.h5"), UsageError);
  spit(folder / "w.h5", "not HDF5 at all");
  EXPECT_THAT(message_of([&] { Hdf5File::open(folder / "w.h5"); }),
              testing::AllOf(HasSubstr("w.h5"), HasSubstr("HDF5")));
  Hdf5File file = Hdf5File::create(folder / "v.h5");
  file.create_dataset("w", {2}, DType::f32);
  std::vector<double> values(2);
  EXPECT_THAT(message_of([&] { file.write("w", cpu_tensor(values.data(), {2})); }),
              HasSubstr("w holds f32, the tensor f64"));
  EXPECT_THAT(message_of([&] { file.create_dataset("w", {2}, DType::f32); }),
              testing::AllOf(HasSubstr("v.h5"), HasSubstr("cannot create the dataset w")));
  EXPECT_THAT(message_of([&] { file.shape("x"); }), HasSubstr("no dataset x"));
  EXPECT_THROW(Hdf5File::open(folder / "w.h5").publish(), Error);
}

TEST(Hdf5File, ReservedDatasetsAreFilledByPosition) {
  const TemporaryFolder folder;
  std::vector<float> values = {1, 2, 3, 4, 5, 6};
  int64_t place = 0;
  {
    Hdf5File file = Hdf5File::create(folder / "w.h5");
    file.reserve_dataset("g/w", {3, 2}, DType::f32);
    file.reserve_dataset("empty", {0}, DType::f32);
    file.set_attribute("g/w", "offset", std::vector<int64_t>{7, int64_t{1} << 40});
    place = file.dataset_place("g/w");
    EXPECT_THAT(message_of([&] { file.dataset_place("empty"); }), HasSubstr("empty has no place"));
    EXPECT_THAT(message_of([&] { file.dataset_place("x"); }), HasSubstr("no dataset x"));
    file.publish();
  }
  PositionalFile(folder / "w.h5", PositionalFile::Access::write).write(place, values.data(), 24);
  const Hdf5File file = Hdf5File::open(folder / "w.h5");
  EXPECT_EQ(file.dataset_place("g/w"), place);
  std::vector<float> found(6);
  file.read("g/w", cpu_tensor(found.data(), {3, 2}));
  EXPECT_EQ(found, values);
  EXPECT_TRUE(file.has_attribute("g/w", "offset"));
}

TEST(Hdf5File, VirtualDatasetsJoinOtherFiles) {
  const TemporaryFolder folder;
  std::vector<double> values = {0, 1, 2, 3, 4, 5, 6, 7};
  for (const int64_t half : {0, 1}) {
    Hdf5File file = Hdf5File::create(folder / std::to_string(half));
    file.create_dataset("w", {4}, DType::f64);
    file.write("w", cpu_tensor(values.data() + 4 * half, {4}));
    file.create_dataset("m", {2, 2}, DType::f64);
    file.write("m", cpu_tensor(values.data() + 4 * half, {2, 2}));
    file.publish();
  }
  {
    Hdf5File file = Hdf5File::create(folder / "all");
    const std::vector<VirtualBlock> vectors{{"0", "w", {4}, {0}}, {"1", "w", {4}, {4}}};
    file.create_virtual_dataset("g/w", {8}, DType::f64, vectors);
    // One corner is in no file, one in a file that is not there.
    const std::vector<VirtualBlock> corners{
        {"0", "m", {2, 2}, {0, 2}}, {"1", "m", {2, 2}, {2, 0}}, {"2", "m", {2, 2}, {2, 2}}};
    file.create_virtual_dataset("m", {4, 4}, DType::f64, corners);
    EXPECT_THAT(message_of([&] { file.create_virtual_dataset("x", {7}, DType::f64, vectors); }),
                HasSubstr("x is [7]; a block [4] at [4, 0] does not fit"));
    EXPECT_THROW(file.create_virtual_dataset("x", {8, 1}, DType::f64, vectors), Error);
    const std::vector<VirtualBlock> pattern{{"%b", "w", {4}, {0}}};
    EXPECT_THAT(message_of([&] { file.create_virtual_dataset("x", {8}, DType::f64, pattern); }),
                HasSubstr("'%'"));
    EXPECT_THAT(message_of([&] { file.create_virtual_dataset("x", {8}, DType::i64, vectors); }),
                HasSubstr("NaN"));
    file.publish();
  }
  const Hdf5File file = Hdf5File::open(folder / "all");
  EXPECT_EQ(file.dtype("g/w"), DType::f64);
  std::vector<double> found(16);
  file.read("g/w", cpu_tensor(found.data(), {8}));
  EXPECT_EQ(std::vector<double>(found.begin(), found.begin() + 8), values);
  file.read("m", cpu_tensor(found.data(), {4, 4}));
  const double nan = std::nan("");
  EXPECT_THAT(found, testing::Pointwise(testing::NanSensitiveDoubleEq(),
                                        {nan, nan, 0., 1., nan, nan, 2., 3.,  //
                                         4., 5., nan, nan, 6., 7., nan, nan}));
  EXPECT_THAT(message_of([&] { file.dataset_place("m"); }), HasSubstr("m has no place"));
}

TEST(Hdf5File, ThreadsUseFilesOfTheirOwn) {
  const TemporaryFolder folder;
  const auto work = [&](int thread) {
    for (int round = 0; round < 20; ++round) {
      std::vector<int64_t> values = {thread, round};
      const std::string path = folder / fmt::format("{}.{}", thread, round);
      Hdf5File file = Hdf5File::create(path);
      file.create_dataset("a/w", {2}, DType::i64);
      file.write("a/w", cpu_tensor(values.data(), {2}));
      file.publish();
      std::vector<int64_t> found(2);
      const Hdf5File again = Hdf5File::open(path);
      again.read("a/w", cpu_tensor(found.data(), {2}));
      ASSERT_EQ(found, values);
      ASSERT_THAT(message_of([&] { again.shape("x"); }), HasSubstr("no dataset x"));
    }
  };
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(work, t);
}

}  // namespace
}  // namespace phalanx
