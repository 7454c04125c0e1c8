// The few functions of OpenSSL that tls.cc calls, found in the machine's own library when the first TLS connection is
// made: no header and no library is needed to build, and a process that never speaks TLS loads nothing. The prototypes
// are those of OpenSSL 1.1.1 and 3.x, which are the same for all of these; the types stay opaque.
//
// Filled once, read-only afterwards. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"

struct ssl_st;
struct ssl_ctx_st;
struct ssl_session_st;
struct ssl_method_st;
struct ssl_cipher_st;
struct bio_st;
struct bio_method_st;
struct evp_md_st;

namespace ray::channel {

struct OpenSsl {
  using Ssl = ssl_st;
  using Context = ssl_ctx_st;
  using Session = ssl_session_st;
  using UsePsk = int (*)(Ssl*, const evp_md_st*, const unsigned char** id, size_t* id_bytes, Session** out);
  using FindPsk = int (*)(Ssl*, const unsigned char* id, size_t id_bytes, Session** out);

  const ssl_method_st* (*TLS_method)();
  Context* (*SSL_CTX_new)(const ssl_method_st*);
  void (*SSL_CTX_free)(Context*);
  long (*SSL_CTX_ctrl)(Context*, int what, long value, void*);
  int (*SSL_CTX_set_ciphersuites)(Context*, const char* names);
  int (*SSL_CTX_set_num_tickets)(Context*, size_t count);
  void (*SSL_CTX_set_psk_use_session_callback)(Context*, UsePsk);
  void (*SSL_CTX_set_psk_find_session_callback)(Context*, FindPsk);
  Ssl* (*SSL_new)(Context*);
  void (*SSL_free)(Ssl*);
  void (*SSL_set_bio)(Ssl*, bio_st* read, bio_st* write);
  void (*SSL_set_verify)(Ssl*, int mode, void* callback);
  void (*SSL_set_connect_state)(Ssl*);
  void (*SSL_set_accept_state)(Ssl*);
  int (*SSL_do_handshake)(Ssl*);
  int (*SSL_read)(Ssl*, void*, int bytes);
  int (*SSL_write)(Ssl*, const void*, int bytes);
  int (*SSL_get_error)(const Ssl*, int returned);
  int (*SSL_session_reused)(const Ssl*);
  int (*SSL_set_ex_data)(Ssl*, int index, void*);
  void* (*SSL_get_ex_data)(const Ssl*, int index);
  const ssl_cipher_st* (*SSL_CIPHER_find)(Ssl*, const unsigned char* number);
  Session* (*SSL_SESSION_new)();
  void (*SSL_SESSION_free)(Session*);
  int (*SSL_SESSION_set1_master_key)(Session*, const unsigned char*, size_t bytes);
  int (*SSL_SESSION_set_cipher)(Session*, const ssl_cipher_st*);
  int (*SSL_SESSION_set_protocol_version)(Session*, int);
  bio_st* (*BIO_new)(const bio_method_st*);
  bio_method_st* (*BIO_meth_new)(int type, const char* name);
  int (*BIO_meth_set_write)(bio_method_st*, int (*)(bio_st*, const char*, int));
  int (*BIO_meth_set_read)(bio_method_st*, int (*)(bio_st*, char*, int));
  int (*BIO_meth_set_ctrl)(bio_method_st*, long (*)(bio_st*, int, long, void*));
  void (*BIO_set_data)(bio_st*, void*);
  void* (*BIO_get_data)(bio_st*);
  void (*BIO_set_init)(bio_st*, int);
  void (*BIO_set_flags)(bio_st*, int);
  void (*BIO_clear_flags)(bio_st*, int);
  void (*ERR_clear_error)();

  // The functions, or null and a Status (kNotFound: no such library on this machine, or one too old; says which were
  // looked for). The first call looks; the answer stays.
  static const OpenSsl* Load(Status* status);
};

}  // namespace ray::channel
