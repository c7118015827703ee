/* The caller's side: starts launchers and carries messages.  Never prints, never exits. */
#ifndef PC_EXTENSION_H
#define PC_EXTENSION_H

#include <stddef.h>
#include <stdint.h>

struct pc_record
{
  uint32_t kind;
  uint32_t step;
  int32_t error;
  int32_t op;
  int32_t value;
  uint32_t flags;
  uint64_t cpu_user;
  uint64_t cpu_system;
  uint64_t peak_rss;
};

struct pc_record_fd
{
  struct pc_record record;
  int fd;
};

/* Every function returns a negative errno on failure. */
const char *pcx_step_name (unsigned int step);
int pcx_start_launcher (int plain_user, int *socket_out, int *pidfd_out);
int pcx_send (int socket, const char *buffer, size_t size, const int *fds, unsigned int count);
int pcx_receive (int socket, struct pc_record_fd *out, int timeout_ms);
/* Queue the agent's settings, send the plan, and wait for both answers. */
int pcx_start (int launcher, int control, const char *request, size_t request_size, const int *fds,
               unsigned int fd_count, int close_from, const char *security, size_t security_size,
               struct pc_record_fd *reply, struct pc_record_fd *ready);
int pcx_sealed_memory (const char *name, const char *data, size_t size);
int pcx_open_tree (const char *path, int recursive);
int pcx_clone_mount (const char *type);
int pcx_openat2 (int directory, const char *path, uint64_t flags, uint64_t resolve);
int pcx_setns (int fd, int type);
int pcx_unshare (int flags);
int pcx_pivot_root (const char *new_root);
int pcx_landlock_abi (void);
int pcx_plan_check (const char *buffer, size_t size);
int pcx_exec_check (const char *buffer, size_t size);
int pcx_security_check (const char *buffer, size_t size);
int pcx_grow_descriptor_table (int fd);
int pcx_write_file (int directory, const char *path, const char *data, size_t size);
int pcx_reflect_layout (const char *name);

#endif
