// Runs the tests of every file linked in.
#include "testing.h"

RAY_TEST_MAIN()
