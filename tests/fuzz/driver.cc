// A fuzzing driver for compilers without libFuzzer: replays a corpus folder, then mutates its members until the time is
// up. Deterministic for a given corpus and number of inputs (fixed seed).
//   NAME_fuzz CORPUS_FOLDER SECONDS
// An input that crashes or takes longer than 10 s is left in ./crash-NAME for replay (as CORPUS_FOLDER).
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kMaxInput = 1 << 16;
constexpr unsigned kSecondsAnInput = 10;

std::string current_input;
std::string crash_file;

void SaveCurrentInput() {
  FILE* file = std::fopen(crash_file.c_str(), "wb");
  if (file == nullptr) return;
  std::fwrite(current_input.data(), 1, current_input.size(), file);
  std::fclose(file);
  std::fprintf(stderr, "the input is in %s\n", crash_file.c_str());
}

void OnFatalSignal(int number) {
  const char* reason = number == SIGALRM ? "an input takes too long\n" : "the program aborted\n";
  (void)!write(STDERR_FILENO, reason, std::char_traits<char>::length(reason));
  SaveCurrentInput();
  _exit(1);
}

void RunOne(const std::string& input) {
  current_input = input;
  alarm(kSecondsAnInput);
  // A copy of exactly the input's size, so that ASan sees the first byte read past it.
  std::vector<uint8_t> exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  alarm(0);
}

std::vector<std::string> ReadCorpus(const std::string& folder) {
  std::vector<std::string> corpus;
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_regular_file(folder)) files.push_back(folder);
  else if (std::filesystem::is_directory(folder)) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) corpus.emplace_back();
  return corpus;
}

// Mutations as fuzzers commonly use them: bit flips, interesting bytes, numbers, deletions, repeats and splices.
class Mutator {
 public:
  explicit Mutator(std::vector<std::string>* corpus) : corpus_(corpus) {}

  std::string Next() {
    std::string input = Pick();
    for (size_t i = 1 + Below(6); i > 0; --i) MutateOnce(&input);
    if (input.size() > kMaxInput) input.resize(kMaxInput);
    return input;
  }

 private:
  size_t Below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }
  const std::string& Pick() { return (*corpus_)[Below(corpus_->size())]; }

  void MutateOnce(std::string* input) {
    static const char* const kTokens[] = {"{", "}", "[", "]", "\"", ",", ":", "null", "true", "-1", "1e999", "\\u0000",
                                          "\\ud800", "99999999999999999999", "0.5", "{%", "%}", "{{", "}}", "\xff\xfe",
                                          "\xf0\x9f\x98\x80", "\xe2\x96", "I32", "F8_E4M3", "data_offsets"};
    static const unsigned char kBytes[] = {0, 1, 0x7f, 0x80, 0xff, '"', '\\', '{', '}', '[', ']', '0', '9', '-', ' '};
    size_t at = Below(input->size() + 1), length = 1 + Below(16);
    switch (Below(8)) {
      case 0: if (at < input->size()) (*input)[at] ^= static_cast<char>(1 << Below(8)); break;
      case 1: if (at < input->size()) (*input)[at] = static_cast<char>(kBytes[Below(std::size(kBytes))]); break;
      case 2: input->insert(at, kTokens[Below(std::size(kTokens))]); break;
      case 3: input->erase(std::min(at, input->size()), length); break;
      case 4: input->insert(at, std::string(input->substr(std::min(at, input->size()), length))); break;
      case 5: input->resize(at); break;
      case 6: Splice(input, at); break;
      case 7: Number(input, at); break;
    }
  }

  void Splice(std::string* input, size_t at) {
    const std::string& other = Pick();
    size_t from = Below(other.size() + 1);
    input->replace(at, std::string::npos, other.substr(from, Below(4096)));
  }

  // Little-endian 64-bit values at the borders, as length fields have them.
  void Number(std::string* input, size_t at) {
    static const uint64_t kValues[] = {0, 1, 8, 0xffff, 0x7fffffff, 0xffffffff, 1ull << 40, ~0ull, ~0ull >> 1};
    uint64_t value = kValues[Below(std::size(kValues))];
    for (size_t i = 0; i < 8 && at + i < input->size(); ++i) (*input)[at + i] = static_cast<char>(value >> (8 * i));
  }

  std::vector<std::string>* corpus_;
  std::mt19937_64 random_{20240607};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER SECONDS\n", argv[0]);
    return 2;
  }
  crash_file = "crash-" + std::filesystem::path(argv[0]).filename().string();
  __sanitizer_set_death_callback(SaveCurrentInput);
  for (int number : {SIGABRT, SIGALRM}) signal(number, OnFatalSignal);
  std::vector<std::string> corpus = ReadCorpus(argv[1]);
  for (const std::string& input : corpus) RunOne(input);
  Mutator mutator(&corpus);
  auto end = Clock::now() + std::chrono::duration<double>(std::atof(argv[2]));
  uint64_t runs = 0;
  for (; Clock::now() < end; ++runs) RunOne(mutator.Next());
  std::printf("%zu corpus files replayed, %llu mutated inputs, no failure\n", corpus.size(),
              static_cast<unsigned long long>(runs));
  return 0;
}
