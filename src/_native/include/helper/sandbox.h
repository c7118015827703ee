/* Sandbox of helper processes that work on a guest's files, archives or connections. */
#ifndef PC_HELPER_SANDBOX_H
#define PC_HELPER_SANDBOX_H

#include "wire.h"

#define PC_WRITE_AS_USER 2 /* for `writes` of pc_confine_to: without capabilities */

/* Become root of the user namespace of a container's process, and of no other namespace of it. */
word pc_join_user (int pidfd);
/* Keep two fds, the system calls of a file server and the capabilities that they need; root becomes the root. */
word pc_confine_server (int root, int socket, int landlock);
/* Keep three fds, the system calls of an unpacker or packer and the capabilities that they need; top becomes the
   root. */
word pc_confine_to (int top, int socket, int stream, int writes, int landlock);
/* Install a seccomp filter that kills this process on every system call but these. */
word pc_filter_calls (const u16 *calls, u32 count);
/* Return 1 if a file is on a file system of kernel interfaces (/proc, /sys), where I/O acts on the host. */
int pc_is_of_kernel (int fd);
/* Access files as this user of the joined namespace; the real ids stay.  0 or a negative errno. */
word pc_act_as (u32 uid, u32 gid, u32 count, const u32 *groups);

#endif
