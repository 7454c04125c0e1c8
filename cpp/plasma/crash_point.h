// Places where the kill test ends a client: RAY_CRASH_POINT() counts down and, at zero, kills this very process with
// SIGKILL. Only in the library that cpp_tests/plasma builds with -DRAY_PLASMA_CRASH_POINTS; elsewhere it is nothing.
#pragma once

#ifdef RAY_PLASMA_CRASH_POINTS
#include <csignal>

namespace ray::plasma {
inline long crash_countdown = 0;  // 0: never. Set by the test's child, one thread.
inline void CrashPoint() {
  if (crash_countdown > 0 && --crash_countdown == 0) raise(SIGKILL);
}
}  // namespace ray::plasma
#define RAY_CRASH_POINT() ::ray::plasma::CrashPoint()
#else
#define RAY_CRASH_POINT() static_cast<void>(0)
#endif
