// A test framework in one header, spelled like GoogleTest, so that a fresh machine needs nothing but a compiler.
//
//   #include "testing.h"
//   TEST(ObjectTable, HidesAnObjectStillBeingWritten) { EXPECT_EQ(1 + 1, 2); }
//   RAY_TEST_MAIN()
//
// EXPECT_* records a failure and goes on; ASSERT_* leaves the test function. `prog NAME` runs only the tests whose
// full name "Suite.Name" contains NAME. Exit status 0: all passed, and at least one ran. Closing line: "N passed, M
// failed".
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace ray::testing {

struct Case {
  const char* suite;
  const char* name;
  void (*body)();
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

inline int& FailuresInThisTest() {
  static int failures = 0;
  return failures;
}

struct Registrar {
  Registrar(const char* suite, const char* name, void (*body)()) { Cases().push_back({suite, name, body}); }
};

// Prints what it can of a value; a type without operator<< prints as its size.
template <typename T>
std::string Show(const T& value) {
  if constexpr (requires(std::ostringstream& out) { out << value; }) {
    std::ostringstream out;
    out << value;
    return out.str();
  } else {
    return "<" + std::to_string(sizeof(T)) + "-byte object>";
  }
}

inline void Fail(const char* file, int line, const std::string& what) {
  ++FailuresInThisTest();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

inline int RunAll(int argc, char** argv) {
  const char* only = argc > 1 ? argv[1] : "";
  int passed = 0, failed = 0;
  for (const Case& c : Cases()) {
    const std::string full = std::string(c.suite) + "." + c.name;
    if (full.find(only) == std::string::npos) continue;
    FailuresInThisTest() = 0;
    try {
      c.body();
    } catch (const std::exception& e) {
      Fail(full.c_str(), 0, std::string("threw ") + e.what());
    }
    const bool ok = FailuresInThisTest() == 0;
    std::printf("[%s] %s\n", ok ? "  ok  " : "FAILED", full.c_str());
    std::fflush(stdout);
    ok ? ++passed : ++failed;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace ray::testing

#define TEST(suite, name)                                                                             \
  static void suite##_##name##_Body();                                                                \
  static ::ray::testing::Registrar suite##_##name##_registrar(#suite, #name, &suite##_##name##_Body); \
  static void suite##_##name##_Body()
#define RAY_TEST_MAIN() \
  int main(int argc, char** argv) { return ::ray::testing::RunAll(argc, argv); }

#define RAY_COMPARE_(a, op, b, leave)                                                                         \
  do {                                                                                                        \
    const auto& ray_left_ = (a);                                                                              \
    const auto& ray_right_ = (b);                                                                             \
    if (!(ray_left_ op ray_right_)) {                                                                         \
      ::ray::testing::Fail(__FILE__, __LINE__,                                                                \
                           "expected " #a " " #op " " #b ", but left is " + ::ray::testing::Show(ray_left_) + \
                               " and right is " + ::ray::testing::Show(ray_right_));                          \
      leave;                                                                                                  \
    }                                                                                                         \
  } while (0)
#define EXPECT_EQ(a, b) RAY_COMPARE_(a, ==, b, )
#define EXPECT_NE(a, b) RAY_COMPARE_(a, !=, b, )
#define EXPECT_LT(a, b) RAY_COMPARE_(a, <, b, )
#define EXPECT_LE(a, b) RAY_COMPARE_(a, <=, b, )
#define EXPECT_GT(a, b) RAY_COMPARE_(a, >, b, )
#define EXPECT_GE(a, b) RAY_COMPARE_(a, >=, b, )
#define EXPECT_TRUE(a) RAY_COMPARE_(static_cast<bool>(a), ==, true, )
#define EXPECT_FALSE(a) RAY_COMPARE_(static_cast<bool>(a), ==, false, )
#define ASSERT_EQ(a, b) RAY_COMPARE_(a, ==, b, return)
#define ASSERT_NE(a, b) RAY_COMPARE_(a, !=, b, return)
#define ASSERT_LT(a, b) RAY_COMPARE_(a, <, b, return)
#define ASSERT_GE(a, b) RAY_COMPARE_(a, >=, b, return)
#define ASSERT_GT(a, b) RAY_COMPARE_(a, >, b, return)
#define ASSERT_TRUE(a) RAY_COMPARE_(static_cast<bool>(a), ==, true, return)
#define ASSERT_FALSE(a) RAY_COMPARE_(static_cast<bool>(a), ==, false, return)
