// Words for the kernel's refusals; status.h says what a Status is.
#include "common/status.h"

#include <cerrno>
#include <cstring>

namespace ray {

Status Status::FromErrno(const std::string& what, int error) {
  StatusCode code = StatusCode::kSystem;
  if (error == EACCES || error == EPERM) code = StatusCode::kPermission;
  if (error == ENOENT) code = StatusCode::kNotFound;
  return Status(code, what + ": " + std::strerror(error));
}

}  // namespace ray
