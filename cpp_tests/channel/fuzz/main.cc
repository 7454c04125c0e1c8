// Runs the fuzz tests linked in.
#include "testing.h"

RAY_TEST_MAIN()
