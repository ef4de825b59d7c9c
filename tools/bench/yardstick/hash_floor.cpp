// The least a program can do for the job of `vit21k hash`: list a tree, read every file once,
// digest it with XXH3-128, and write one line per file in path order.
//
//   g++ -O3 -march=native -std=c++17 -pthread hash_floor.cpp -o hash_floor
//   ./hash_floor ROOT NUM_THREADS > digests.txt
//
// `tools/bench_hash.py` compiles it and measures against it.  It knows nothing of problems, of
// pictures, of being killed, or of Parquet.

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

struct File {
    std::string path;
    XXH128_hash_t digest{};
    bool is_read = false;
};

static void digest(File& file, std::vector<char>& buffer) {
    const int descriptor = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) != 0) return;
    if (buffer.size() < static_cast<size_t>(status.st_size) + 1) buffer.resize(status.st_size + 1);
    size_t num_bytes = 0;
    ssize_t num_read;
    while ((num_read = read(descriptor, buffer.data() + num_bytes, buffer.size() - num_bytes)) > 0)
        num_bytes += num_read;
    close(descriptor);
    file.digest = XXH3_128bits(buffer.data(), num_bytes);
    file.is_read = num_read == 0;
}

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: hash_floor ROOT NUM_THREADS\n");
        return 2;
    }
    std::vector<File> files;
    for (const auto& entry : fs::recursive_directory_iterator(argv[1]))
        if (entry.is_regular_file()) files.push_back({entry.path().string()});
    std::sort(files.begin(), files.end(),
              [](const File& one, const File& other) { return one.path < other.path; });

    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int number = std::atoi(argv[2]); number > 0; --number)
        threads.emplace_back([&] {
            std::vector<char> buffer(1 << 20);
            for (size_t index; (index = next++) < files.size();) digest(files[index], buffer);
        });
    for (auto& thread : threads) thread.join();

    for (const auto& file : files)
        std::printf("%016llx%016llx  %s%s\n", static_cast<unsigned long long>(file.digest.high64),
                    static_cast<unsigned long long>(file.digest.low64), file.path.c_str(),
                    file.is_read ? "" : "  (not read)");
    return 0;
}
