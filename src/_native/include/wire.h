/* Small pieces that both static programs need: memory, strings, messages with fds. */
#ifndef PC_WIRE_H
#define PC_WIRE_H

#include "abi.h"
#include "protocol.h"
#include "raw.h"
#include "steps.h"

#define cleanup_fd __attribute__ ((cleanup (pc_close_fd)))

void *memcpy (void *to, const void *from, usize n);
void *memset (void *to, int byte, usize n);
int memcmp (const void *a, const void *b, usize n);
usize pc_strlen (const char *text);
int pc_streq (const char *a, const char *b);
/* Decimal digits of value at out, which holds at least 21 bytes; the length. */
usize pc_decimal (char *out, u64 value);

/* struct linux_dirent64, which getdents64(2) fills in. */
struct pc_entry
{
  u64 inode;
  i64 offset;
  u16 size;
  u8 type;
  char name[];
};

/* struct rusage, which wait4(2) fills in. */
struct pc_kernel_usage
{
  i64 user_seconds;
  i64 user_micros;
  i64 system_seconds;
  i64 system_micros;
  i64 peak_kib;
  i64 more[6];
  i64 read_blocks; /* of 512 bytes */
  i64 written_blocks;
  i64 rest[5];
};

static inline void
pc_close_fd (int *fd)
{
  if (*fd >= 0)
    sys_close (*fd);
  *fd = -1;
}

static inline int
pc_steal_fd (int *fd)
{
  int taken = *fd;
  *fd = -1;
  return taken;
}

/* struct cmsghdr and struct msghdr. */
struct pc_control_header
{
  usize length;
  i32 level;
  i32 type;
};

struct pc_message
{
  void *name;
  i32 name_length;
  struct iovec *parts;
  usize part_count;
  void *control;
  usize control_length;
  u32 flags;
};

struct pc_fds
{
  int fd[1024];
  u32 count;
  u32 truncated; /* the kernel dropped some, at this process's RLIMIT_NOFILE */
};

/* Bytes received, 0 at the end of the stream, or a negative errno; fds are close-on-exec. */
word pc_receive (int socket, void *buffer, usize size, struct pc_fds *fds, int flags);
int pc_send (int socket, const void *buffer, usize size, const int *fds, u32 count, int flags);
int pc_send_record (int socket, const struct pc_record *record, int fd);
/* Make the record report that a step failed with a negative errno, at operation `op` of the plan or -1.  Returns
   -1. */
int pc_failed (struct pc_record *record, u32 step, word error, i32 op);
/* Make the record report the wait status and the resource usage of a process that ended. */
void pc_exited_record (struct pc_record *record, i32 status, const struct pc_kernel_usage *usage);
void pc_close_fds (struct pc_fds *fds);
/* Map the first fd, a memfd sealed against writing and shrinking with at least `size` bytes, and close it.  NULL
   if it is anything else. */
const void *pc_map_sealed (struct pc_fds *fds, usize size);
/* Write a whole small file; the path is relative to dir. */
int pc_write_file (int dir, const char *path, const void *data, usize size);

/* Entry point of a program: start.c passes the initial stack, which begins with argc. */
_Noreturn void pc_main (word *stack);

/* Give fd the number `to`, with the flags of dup3(2).  The new number or a negative errno. */
int pc_move_fd (int fd, int to, int flags);
/* Make these fds stdin, stdout and stderr, and set close-on-exec on all others.  0 or a negative errno. */
int pc_set_stdio (const int fds[3]);
/* Close all fds from 3 on but these: until execve, a path through /proc/self/fd would lead to them. */
int pc_close_all_but (const int *kept, u32 count);

#endif
