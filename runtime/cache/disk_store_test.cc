#include "runtime/cache/disk_store.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

class DiskStoreTest : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  DiskStoreOptions Options(uint64_t blocks = 100) const {
    DiskStoreOptions options;
    options.folder = folder_.string();
    options.facts.identity.fill(7);
    options.facts.block_bytes = 1000;
    options.limit = blocks * BlockFileBytes(options.facts);
    return options;
  }
  static std::unique_ptr<DiskStore> Open(const DiskStoreOptions& options) {
    auto store = DiskStore::Open(options);
    EXPECT_TRUE(store.ok()) << store.status().message();
    return std::move(store).value();
  }
  static BlockKey Key(int i) { return NextKey(RootKey(0), std::vector<int32_t>{i}); }
  static std::string Bytes(int i) {
    std::string bytes(1000, 0);
    for (size_t at = 0; at < bytes.size(); ++at) bytes[at] = static_cast<char>(at * 31 + static_cast<size_t>(i));
    return bytes;
  }
  // The answer to a store or fetch of `key`; other events go to seen_.
  KvEventKind Answer(DiskStore& store, const BlockKey& key) {
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < end) {
      for (const KvEvent& event : store.TakeEvents(milliseconds(10))) {
        bool answer = event.key == key && event.kind != KvEventKind::kFound && event.kind != KvEventKind::kGone;
        if (answer) return event.kind;
        seen_.push_back(event);
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
    ADD_FAILURE() << "no answer";
    return KvEventKind::kFailed;
  }
  KvEventKind Store(DiskStore& store, int i) {
    store.Store(Key(i), Bytes(i));
    return Answer(store, Key(i));
  }
  KvEventKind Fetch(DiskStore& store, int i) {
    store.Fetch(Key(i));
    return Answer(store, Key(i));
  }
  fs::path PathOf(int i) const {
    for (const auto& entry : fs::recursive_directory_iterator(folder_))
      if (entry.path().filename() == ToHex(Key(i)) + ".kv") return entry.path();
    return {};
  }
  static bool Has(const std::vector<KvEvent>& events, KvEventKind kind, const BlockKey& key) {
    return std::any_of(events.begin(), events.end(), [&](const KvEvent& e) { return e.kind == kind && e.key == key; });
  }

  fs::path folder_ = fs::temp_directory_path() / ("latentmesh_disk_store_test." + std::to_string(getpid()));
  std::vector<KvEvent> seen_;
};

TEST_F(DiskStoreTest, ReturnsWhatWasStoredAlsoAfterARestart) {
  {
    auto store = Open(Options());
    EXPECT_EQ(Store(*store, 1), KvEventKind::kStored);
    EXPECT_EQ(Store(*store, 1), KvEventKind::kStored);     // is there already
    EXPECT_EQ(Fetch(*store, 1), KvEventKind::kReady);
    EXPECT_EQ(store->Take(Key(1)), Bytes(1));
    EXPECT_EQ(Fetch(*store, 2), KvEventKind::kFailed);
    store->Store(Key(3), Bytes(3));                        // written before the store is gone
  }
  auto store = Open(Options());
  auto events = store->TakeEvents();
  EXPECT_EQ(events.size(), 2u);
  EXPECT_TRUE(Has(events, KvEventKind::kFound, Key(1)));
  EXPECT_TRUE(Has(events, KvEventKind::kFound, Key(3)));
  EXPECT_EQ(Fetch(*store, 3), KvEventKind::kReady);
  EXPECT_EQ(store->Take(Key(3)), Bytes(3));
  EXPECT_TRUE(store->TakeWarnings().empty());
}

TEST_F(DiskStoreTest, DamagedFilesAreIgnoredWithAWarningAndWrittenAnew) {
  auto store = Open(Options());
  for (int i : {1, 2, 3, 4}) ASSERT_EQ(Store(*store, i), KvEventKind::kStored);
  auto flip = [&](int i, std::streamoff at) {
    std::fstream file(PathOf(i), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put(static_cast<char>(0x5a));
  };
  flip(1, 500);                                             // in the block
  flip(2, 20);                                              // in the header
  fs::resize_file(PathOf(3), 600);
  fs::copy_file(PathOf(1), PathOf(4), fs::copy_options::overwrite_existing);   // another block's file
  for (int i : {1, 2, 3, 4}) {
    EXPECT_EQ(Fetch(*store, i), KvEventKind::kFailed) << i;
    EXPECT_TRUE(Has(seen_, KvEventKind::kGone, Key(i))) << i;
    auto warnings = store->TakeWarnings();
    ASSERT_EQ(warnings.size(), 1u) << i;
    EXPECT_THAT(warnings[0], testing::HasSubstr(ToHex(Key(i))));
    EXPECT_EQ(Store(*store, i), KvEventKind::kStored) << i;
    EXPECT_EQ(Fetch(*store, i), KvEventKind::kReady) << i;
    EXPECT_EQ(store->Take(Key(i)), Bytes(i)) << i;
  }
}

TEST_F(DiskStoreTest, AnotherIdentityNeverSeesTheFilesNorTakesThemWhenTheyAreMoved) {
  Open(Options())->Store(Key(1), Bytes(1));
  DiskStoreOptions other = Options();
  other.facts.identity[31] = 8;             // the folder's name has the first bytes only: they share it
  auto store = Open(other);
  EXPECT_EQ(Fetch(*store, 1), KvEventKind::kFailed);
  EXPECT_THAT(store->TakeWarnings(), testing::ElementsAre(testing::HasSubstr("another model")));
  other.facts.identity[0] = 8;
  EXPECT_TRUE(Open(other)->TakeEvents().empty());
}

TEST_F(DiskStoreTest, KeepsWhatWasUsedLastWithinItsLimit) {
  auto store = Open(Options(3));
  for (int i : {1, 2, 3}) ASSERT_EQ(Store(*store, i), KvEventKind::kStored);
  ASSERT_EQ(Fetch(*store, 1), KvEventKind::kReady);         // 2 is now the oldest
  ASSERT_EQ(Store(*store, 4), KvEventKind::kStored);
  EXPECT_TRUE(Has(seen_, KvEventKind::kGone, Key(2)));
  EXPECT_TRUE(PathOf(2).empty());
  for (int i : {1, 3, 4}) EXPECT_FALSE(PathOf(i).empty()) << i;
  store.reset();
  EXPECT_EQ(Open(Options(3))->TakeEvents().size(), 3u);
}

TEST_F(DiskStoreTest, TwoStoresInOneFolderDoNotHarmEachOther) {
  auto a = Open(Options(40)), b = Open(Options(40));
  for (int i = 0; i < 60; ++i) {
    a->Store(Key(i), Bytes(i));
    b->Store(Key(i), Bytes(i));
  }
  for (int i = 0; i < 60; ++i) {
    for (DiskStore* store : {a.get(), b.get()}) {
      if (Fetch(*store, i) != KvEventKind::kReady) continue;
      EXPECT_EQ(store->Take(Key(i)), Bytes(i));
    }
  }
  EXPECT_TRUE(a->TakeWarnings().empty());
  EXPECT_TRUE(b->TakeWarnings().empty());
  a.reset(), b.reset();
  Store(*Open(Options(40)), 61);                            // whoever comes next trims what the two left together
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder_)) files += entry.is_regular_file();
  EXPECT_LE(files, 40);
}

// A file size limit stands in for a full disk: writes fail in the middle.
TEST_F(DiskStoreTest, AFullDiskCostsTheBlockAndLeavesNoPartOfIt) {
  auto store = Open(Options());
  auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 512;
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_EQ(Store(*store, 1), KvEventKind::kNotStored);
  EXPECT_EQ(Store(*store, 2), KvEventKind::kNotStored);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(store->TakeWarnings(), testing::ElementsAre(testing::HasSubstr("not stored for now")));   // once
  for (const auto& entry : fs::recursive_directory_iterator(folder_)) EXPECT_FALSE(entry.is_regular_file()) << entry.path();
  EXPECT_EQ(Fetch(*store, 1), KvEventKind::kFailed);
}

TEST_F(DiskStoreTest, MoreThanTheQueueHoldsIsLeftOut) {
  DiskStoreOptions options = Options();
  options.write_queue = 999;
  auto store = Open(options);
  EXPECT_EQ(Store(*store, 1), KvEventKind::kNotStored);
}

TEST_F(DiskStoreTest, ADeadlineAnswersForADiskThatDoesNot) {
  DiskStoreOptions options = Options();
  options.deadline = milliseconds(0);
  auto store = Open(options);
  store->Fetch(Key(1));
  auto events = store->TakeEvents();
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().kind, KvEventKind::kFailed);
}

TEST_F(DiskStoreTest, RefusesAFolderThatCannotBe) {
  std::ofstream(folder_) << "a file";
  auto store = DiskStore::Open(Options());
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), StatusCode::kIo);
  EXPECT_THAT(store.status().message(), testing::HasSubstr("--kv-store"));
}

}  // namespace
}  // namespace latentmesh
