/* The plan of a container: one flat buffer, compiled by Python and carried out by C.
 *
 * Offsets count from the start of the buffer.  The bytes of a reference are followed by a NUL inside the buffer, so
 * that the receiver can use them as a path without a copy.  pc_plan_check () checks that once.
 */
#ifndef PC_PLAN_H
#define PC_PLAN_H

#include "raw.h"

#define PC_PLAN_MAGIC 0x4e4c5050u     /* "PPLN" */
#define PC_EXEC_MAGIC 0x43455850u     /* "PXEC" */
#define PC_SECURITY_MAGIC 0x43455350u /* "PSEC" */
#define PC_VERSION 1u
#define PC_NO_FD 0xffffffffu
#define PC_MAX_MESSAGE (128u * 1024)
#define PC_MAX_FDS 900u

struct pc_ref
{
  u32 offset;
  u32 size;
};

enum pc_op_kind
{
  PC_OP_UPPER = 1,     /* make and hold the upper and work directories; data: tmpfs options, or empty for disk; mode:
                      number of upper directories that the container's directory has already */
  PC_OP_FILE,          /* write a file into the held upper directory; target, data, mode */
  PC_OP_OVERLAY,       /* mount an overlay of the next `count` sources over the held upper at target */
  PC_OP_MOUNT,         /* attach source at target */
  PC_OP_FILESYSTEM,    /* mount a new file system: data is "type\0key=value,flag" */
  PC_OP_DEV,           /* attach the launcher's device tree at target */
  PC_OP_MASK,          /* hide target behind an empty file or directory, if it exists */
  PC_OP_READONLY,      /* make target read-only, if it exists */
  PC_OP_SEAL,          /* make the root mount read-only */
  PC_OP_MOVE,          /* PC_REQUEST_REPLACE_ROOT: move the mount at target, if there is one, to the new root */
  PC_OP_SYS,           /* attach the launcher's copy of /sys at target; data: pairs "c/CONTROLLER/GROUP\0place\0" of
                      cgroups of this container and their places below it */
  PC_OP_DIRECTORY,     /* make target if it is missing; mode; attributes: the user, above 32 bits the group */
  PC_OP_SYSCTL,        /* write data to target, a file of the root's /proc/sys */
  PC_OP_OWN_DIRECTORY, /* make target with mode in the held upper directory where source 0, the uppermost layer,
                          is shown without the container's id map */
  PC_OP_KIND_COUNT
};

enum
{
  PC_OP_NOFOLLOW = 1 << 0,       /* refuse symbolic links in the target's path */
  PC_OP_IS_FILE = 1 << 1,        /* the target is a file */
  PC_OP_IDMAP = 1 << 2,          /* mount source with the container's id map */
  PC_OP_IDMAP_OPTIONAL = 1 << 3, /* mount without it if the file system has no id maps */
  PC_OP_RECURSIVE = 1 << 4,
  PC_OP_SLAVE = 1 << 5, /* later mounts of the host below source propagate to the container, not the reverse */
};

struct pc_source
{
  u32 fd;    /* index into the fds sent with the plan, or PC_NO_FD: open path */
  u32 flags; /* PC_OP_IDMAP, PC_OP_IDMAP_OPTIONAL, PC_OP_RECURSIVE, PC_OP_SLAVE */
  struct pc_ref path;
  u64 device; /* device and inode that path must have, as the caller saw them */
  u64 inode;
  u64 attributes; /* MOUNT_ATTR_* to set */
  u64 first_id;   /* with PC_OP_IDMAP: id on disk of the container's id 0; 65536 ids follow each other */
};

struct pc_op
{
  u16 kind;
  u16 flags;
  u32 mode;
  u32 source;     /* first source */
  u32 count;      /* number of sources */
  u64 attributes; /* MOUNT_ATTR_* of a new mount */
  struct pc_ref target;
  struct pc_ref data;
};

struct pc_join
{
  u32 fd;
  u32 type; /* CLONE_NEW* */
};

struct pc_plan
{
  u32 magic;
  u32 version;
  u32 size;
  u32 flags;
  u64 namespaces; /* CLONE_NEW* to create */
  u32 control_fd; /* fd indexes */
  u32 exit_fd;    /* receives the exit of PID 1, or PC_NO_FD; in PC_REQUEST_REPLACE_ROOT, the pidfd of PID 1 */
  u32 cgroup_fd;  /* v2 directory to clone into, or PC_NO_FD */
  u32 store_fd;   /* detached mount of this container's directory, or PC_NO_FD */
  u32 tasks_fd;   /* first v1 tasks file */
  u32 tasks_count;
  struct pc_source store; /* used where store_fd is PC_NO_FD and path is set */
  struct pc_ref uid_map;
  struct pc_ref gid_map;
  struct pc_ref hostname;
  struct pc_ref ops;      /* array of struct pc_op */
  struct pc_ref sources;  /* array of struct pc_source */
  struct pc_ref joins;    /* array of struct pc_join */
  struct pc_ref security; /* struct pc_security with its own offsets */
  struct pc_ref command;  /* struct pc_exec where the command is PID 1, or empty */
  struct pc_ref counters; /* a line per limit of the user namespace: file of /proc/sys/user, space, number */
};

enum
{
  PC_PLAN_DENY_SETGROUPS = 1 << 0,
  PC_PLAN_LOOPBACK = 1 << 1,
  PC_PLAN_COMMAND_IS_INIT = 1 << 2,
  PC_PLAN_SPARE = 1 << 3, /* hand this plan to the spare, which has its namespaces, ids and cgroups already */
};

struct pc_rlimit
{
  u32 resource;
  u32 pad;
  u64 soft;
  u64 hard;
};

enum
{
  PC_SECURITY_NO_NEW_PRIVS = 1 << 0,
  PC_SECURITY_KEYRING = 1 << 1,
  PC_SECURITY_SUPERVISE = 1 << 2, /* execs have no cgroups of their own: supervise the processes of each */
};

/* Offsets inside count from the start of this structure. */
struct pc_security
{
  u32 magic;
  u32 version;
  u32 size;
  u32 flags;
  u64 capabilities; /* bounding, permitted and effective set of guest processes */
  u32 securebits;
  u32 landlock_abi; /* 0: none */
  u64 landlock_fs;  /* handled file-system rights */
  u64 landlock_scoped;
  u64 landlock_root;       /* rights below / */
  u64 landlock_dev;        /* rights below /dev */
  struct pc_ref rlimits;   /* array of struct pc_rlimit */
  struct pc_ref seccomp;   /* struct sock_filter array, installed as the last control */
  struct pc_ref inherited; /* struct sock_filter array that the agent installs for itself and its children */
};

enum
{
  PC_EXEC_STDIN = 1 << 0, /* fds follow in this order when the bit is set */
  PC_EXEC_STDOUT = 1 << 1,
  PC_EXEC_STDERR = 1 << 2,
  PC_EXEC_CGROUP = 1 << 3,
  PC_EXEC_PTY = 1 << 4,
  PC_EXEC_QUIET = 1 << 5, /* report the exit only, not the start */
};

/* Offsets inside count from the start of this structure. */
struct pc_exec
{
  u32 magic;
  u32 version;
  u32 size;
  u32 flags;
  u32 id;
  u32 tasks_count;
  u32 uid;
  u32 gid;
  u32 argc;
  u32 envc;
  u16 rows;
  u16 columns;
  u32 umask;
  struct pc_ref argv; /* argc strings, each NUL-terminated */
  struct pc_ref env;  /* envc strings */
  struct pc_ref workdir;
  struct pc_ref search; /* PATH for a command without a slash */
  struct pc_ref groups; /* array of u32 */
  struct pc_ref rlimits;
};

/* 0, or a negative errno when any reference leaves the buffer. */
int pc_plan_check (const void *buffer, usize size);
int pc_security_check (const void *buffer, usize size);
int pc_exec_check (const void *buffer, usize size);

static inline const void *
pc_at (const void *base, struct pc_ref ref)
{
  return (const u8 *) base + ref.offset;
}

#endif
