// Finding libssl; openssl.h.
#include "channel/openssl.h"

#include <dlfcn.h>

#include <string>

namespace ray::channel {
namespace {

// libssl.so.3 first: it is what Python's own _ssl is linked with wherever there is a choice, and then it is loaded
// once.
constexpr const char* kNames[] = {"libssl.so.3", "libssl.so.1.1"};

struct Found {
  OpenSsl functions{};
  Status status;
};

template <typename Function>
bool Find(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, name));  // libssl's own, or libcrypto's, which it needs
  return *out != nullptr;
}

const char* FindAll(void* library, OpenSsl* f) {
#define RAY_FIND(name) \
  if (!Find(library, #name, &f->name)) return #name
  RAY_FIND(TLS_method);
  RAY_FIND(SSL_CTX_new);
  RAY_FIND(SSL_CTX_free);
  RAY_FIND(SSL_CTX_ctrl);
  RAY_FIND(SSL_CTX_set_ciphersuites);
  RAY_FIND(SSL_CTX_set_num_tickets);
  RAY_FIND(SSL_set_verify);
  RAY_FIND(SSL_CTX_set_psk_use_session_callback);
  RAY_FIND(SSL_CTX_set_psk_find_session_callback);
  RAY_FIND(SSL_new);
  RAY_FIND(SSL_free);
  RAY_FIND(SSL_set_bio);
  RAY_FIND(SSL_set_connect_state);
  RAY_FIND(SSL_set_accept_state);
  RAY_FIND(SSL_do_handshake);
  RAY_FIND(SSL_read);
  RAY_FIND(SSL_write);
  RAY_FIND(SSL_get_error);
  RAY_FIND(SSL_session_reused);
  RAY_FIND(SSL_set_ex_data);
  RAY_FIND(SSL_get_ex_data);
  RAY_FIND(SSL_CIPHER_find);
  RAY_FIND(SSL_SESSION_new);
  RAY_FIND(SSL_SESSION_free);
  RAY_FIND(SSL_SESSION_set1_master_key);
  RAY_FIND(SSL_SESSION_set_cipher);
  RAY_FIND(SSL_SESSION_set_protocol_version);
  RAY_FIND(BIO_new);
  RAY_FIND(BIO_meth_new);
  RAY_FIND(BIO_meth_set_write);
  RAY_FIND(BIO_meth_set_read);
  RAY_FIND(BIO_meth_set_ctrl);
  RAY_FIND(BIO_set_data);
  RAY_FIND(BIO_get_data);
  RAY_FIND(BIO_set_init);
  RAY_FIND(BIO_set_flags);
  RAY_FIND(BIO_clear_flags);
  RAY_FIND(ERR_clear_error);
#undef RAY_FIND
  return nullptr;
}

Found Look() {
  Found found;
  std::string tried;
  for (const char* name : kNames) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    const char* missing = library != nullptr ? FindAll(library, &found.functions) : nullptr;
    if (library != nullptr && missing == nullptr) return found;
    tried += std::string(tried.empty() ? "" : "; ") + name + ": " +
             (library != nullptr ? std::string("it has no ") + missing : std::string("not found"));
    if (library != nullptr) dlclose(library);
  }
  found.status = Status(StatusCode::kNotFound,
                        "TLS is asked for (the setting tls), and OpenSSL's library is not on this machine (" + tried +
                            "): install OpenSSL 3 or 1.1.1 (package libssl3 or openssl), or leave tls off");
  return found;
}

}  // namespace

const OpenSsl* OpenSsl::Load(Status* status) {
  static const Found found = Look();
  *status = found.status;
  return found.status.ok() ? &found.functions : nullptr;
}

}  // namespace ray::channel
