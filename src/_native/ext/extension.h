/* The extension, in the caller's process: starts launchers and exchanges messages.  It never prints and never
   exits. */
#ifndef PC_EXTENSION_H
#define PC_EXTENSION_H

#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

struct pc_record_fd
{
  struct pc_record record;
  int fd;
};

/* The streams of one command and the channel of its records, pumped until it exits. */
struct pcx_pump
{
  int channel;
  int fds[3]; /* our ends of stdin, stdout, stderr, or -1; closed here at their end */
  const char *input;
  size_t input_size;
  size_t input_done;
  char *data[2];
  size_t size[2];
  size_t capacity[2];
  size_t limit;     /* bytes per stream */
  int64_t deadline; /* CLOCK_MONOTONIC in ns, or 0 */
  struct pc_record record;
  int ended;
  int writers; /* after the exit: 1 if processes that the command left hold an output open */
};

/* The fds and texts of a batch of file operations. */
struct pcx_files
{
  int fds[24];
  unsigned int fd_count;
  unsigned int done; /* operations that succeeded */
  size_t text_size;
  char text[12288]; /* the texts read, each followed by a NUL */
};

/* The answers to one start.  Results are those of pcx_receive: 1 with a record, 0 at the end of the stream. */
struct pcx_exchange
{
  struct pc_record_fd ready; /* from the control socket */
  struct pc_record_fd reply; /* from the launcher */
  int ready_result;
  int reply_result;
  int files_result;
  int received;
  int64_t sent; /* CLOCK_MONOTONIC in ns; 0 before that */
};

/* Every function returns a negative errno on failure. */
const char *pcx_step_name (unsigned int step);
const char *pcx_stage_name (unsigned int stage);
const char *pcx_unpack_problem (unsigned int problem);
int pcx_syncfs (int fd);
int pcx_compare_files (int pid, int fd, int other_pid, int other_fd);

#define PCX_LAUNCHER_ROOTLESS 1       /* for a user without CAP_SYS_ADMIN */
#define PCX_LAUNCHER_FILES 2          /* a file server, which joins a container's user namespace */
#define PCX_LAUNCHER_ROOTLESS_NETNS 3 /* for such a user, in a network namespace of its own */
int pcx_start_launcher (int kind, int *socket_out, int *pidfd_out);
int pcx_send (int socket, const char *buffer, size_t size, const int *fds, unsigned int count);
int pcx_receive (int socket, struct pc_record_fd *out, int timeout_ms);
int pcx_pair (int ends[2]);
/* Send a plan, and close the guest's ends of pipes in `ours`. */
int pcx_send_plan (int launcher, const char *plan, size_t size, const int *fds, unsigned int count, int *ours,
                   unsigned int ours_count, struct pcx_exchange *out);
/* Run a script of file operations while the launcher works on the plan, then receive both answers.  A no-op if
   no plan was sent or the answers were received already. */
void pcx_receive_answers (int launcher, int control, const char *script, size_t script_size, struct pcx_files *files,
                          struct pcx_exchange *out);
int pcx_shutdown (int socket);
int pcx_sealed_memory (const char *name, const char *data, size_t size);
int pcx_open_tree (int directory, const char *path, int recursive);
int pcx_clone_mount (const char *type);
int pcx_mount_device (const char *type, const char *device);
/* The birth time of a file in nanoseconds since 1970, 0 if its file system has none, or -errno. */
int64_t pcx_birth (int fd);
int pcx_openat2 (int directory, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode);
int pcx_setns (int fd, int type);
int pcx_unshare (int flags);
int pcx_pivot_root (const char *new_root);
int pcx_landlock_abi (void);
int pcx_plan_check (const char *buffer, size_t size);
int pcx_exec_check (const char *buffer, size_t size);
int pcx_security_check (const char *buffer, size_t size);
int pcx_grow_descriptor_table (int fd);
int pcx_write_file (int directory, const char *path, const char *data, size_t size);
/* Run file operations in order, each a letter, a path, and for some a text; strings end with NUL.  m and p make a
   directory, c changes its owner, w writes, d and t open a directory or a file and keep the fd, r reads.  The first
   failure stops the script: a negative errno, and no fd is kept. */
int pcx_run_files (const char *script, size_t size, struct pcx_files *files);

/* Pump until the command exits: 0 with all of its output, -ETIMEDOUT, -EMSGSIZE past the limit, -EINTR on a
   signal (call again), -ECONNRESET when the agent is gone. */
int64_t pcx_clock (void);
int pcx_pump (struct pcx_pump *pump);
void pcx_pump_free (struct pcx_pump *pump);
/* Wait until the cgroup of this cgroup.events has no process.  0, or -EAGAIN at the timeout. */
int pcx_wait_unpopulated (int events, int timeout_ms);

#endif
