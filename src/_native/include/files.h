/* Messages between a caller and the file server of a running container. */
#ifndef PC_FILES_H
#define PC_FILES_H

#include "protocol.h"

#define PC_FILES_LANDLOCK 1u /* this kernel has Landlock: it must hold */

/* PC_REQUEST_FILES turns a launcher into a file server.  fds: the container's root directory, and a pidfd of a
   process whose user namespace the server joins.  Answered by a record. */

enum pc_file_verb
{
  PC_FILE_OPEN = 1, /* flags of open(2); answered with an fd */
  PC_FILE_MKDIR,
  PC_FILE_UNLINK,
  PC_FILE_RMDIR,
  PC_FILE_RENAME,  /* to `second`; flags: RENAME_NOREPLACE or 0 */
  PC_FILE_SYMLINK, /* to `second` */
  PC_FILE_LINK,    /* hard link to the file `second` */
  PC_FILE_SET,     /* attributes of the path, or of the fd that is sent */
};

#define PC_FILE_SET_OWNER 1u
#define PC_FILE_SET_MODE 2u
#define PC_FILE_SET_TIMES 4u

#define PC_FILE_GROUPS_MOST 64u

/* PC_REQUEST_FILE, followed by the path and a second text, each NUL-terminated.  The operation has the rights of
   the container's user `uid`, `gid`, `groups`, who owns new files.  owner_uid, owner_gid: for
   PC_FILE_SET_OWNER.  Answered by a record with the errno, and the request's id in `op`. */
struct pc_file_request
{
  struct pc_request request;
  u32 verb;
  u32 flags;
  u32 mode;
  u32 uid;
  u32 gid;
  u32 owner_uid;
  u32 owner_gid;
  u32 set;
  u32 group_count;
  u32 pad;
  u32 groups[PC_FILE_GROUPS_MOST];
  i64 times[4]; /* access and modification, as utimensat(2) takes them */
};

#endif
