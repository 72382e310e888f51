// IDX files made by tests, in a directory of their own.
#ifndef PARLEY_TESTS_UNIT_WORKER_IDX_FILES_H_
#define PARLEY_TESTS_UNIT_WORKER_IDX_FILES_H_

#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace parley {

inline std::string IdxBytes(const std::vector<uint32_t>& shape,
                            const std::vector<uint8_t>& values) {
  std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
  for (uint32_t extent : shape) {
    for (int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(extent >> shift));
  }
  bytes.append(values.begin(), values.end());
  return bytes;
}

inline std::string GzipBytes(const std::string& bytes) {
  z_stream stream = {};
  deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

class IdxFolder {
 public:
  IdxFolder() {
    std::string name = ::testing::TempDir() + "parley-idx-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  ~IdxFolder() { std::filesystem::remove_all(directory_); }

  const std::string& directory() const { return directory_; }

  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = directory_ + "/" + name;
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return path;
  }
  std::string WriteGz(const std::string& name, const std::string& bytes) {
    return Write(name, GzipBytes(bytes));
  }

 private:
  std::string directory_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_IDX_FILES_H_
