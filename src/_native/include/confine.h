/* What a program keeps that touches trees which nobody has looked at yet. */
#ifndef PC_CONFINE_H
#define PC_CONFINE_H

#include "wire.h"

/* Become root of a container's user namespace, of that alone: its processes see nothing of it. */
word pc_join_user (int pidfd);
/* Keep nothing but these two fds, the calls of a files server, and the rights that they take; root becomes the
   root. */
word pc_confine_server (int root, int socket, int landlock);
/* From now on any other call ends this process. */
word pc_filter_calls (const u16 *calls, u32 count);
/* Is this directory or file one of the kernel's own interfaces, where reading and writing are no storage? */
int pc_is_of_kernel (int fd);
/* Access files as this user of the joined namespace from now on; the real ids stay.  0 or a negative errno. */
word pc_act_as (u32 uid, u32 gid, u32 count, const u32 *groups);

#endif
