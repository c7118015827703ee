/* Messages between caller, launcher and agent.  All sockets are SOCK_SEQPACKET. */
#ifndef PC_PROTOCOL_H
#define PC_PROTOCOL_H

#include "raw.h"

#define PC_AGENT_CONTROL_FD 3
#define PC_LAUNCHER_FD 3
#define PC_AGENT_IMAGE_FD 4

/* The kinds of requests; values are internal, since both ends come from one build. */
enum pc_request_kind
{
  PC_REQUEST_SPAWN = 1, /* to the launcher: a plan; for a spare `value` bytes of it, then a script */
  PC_REQUEST_MAPS,      /* to the launcher: the id maps of its own user namespace are written */
  PC_REQUEST_REMOVE,    /* to the launcher: below each directory sent, a letter and a name: t for a tree, g for a
                           cgroup and those in it, k for a directory that is kept until then */
  PC_REQUEST_SECURITY,  /* to the agent: struct pc_security */
  PC_REQUEST_EXEC,      /* to the agent: struct pc_exec */
  PC_REQUEST_SIGNAL,    /* to the agent: send signal `value` to the exec `id` */
  PC_REQUEST_KILL_TREE, /* to the agent: kill every process of the exec `id` */
  PC_REQUEST_KILL_ALL,  /* to the agent: kill every process but the agent */
  PC_REQUEST_OPEN,      /* to the agent: open a path beneath the root and send the fd back */
  PC_REQUEST_PREPARE,   /* to the launcher: run a script's file operations below the directories sent, then clone a
                           child that waits for a plan in the namespaces, ids and groups of this one.  `value` bytes
                           of plan, then the script.  Without an answer: a SPAWN that finds no spare reports it. */
  PC_REQUEST_UNPACK,    /* layer.h */
  PC_REQUEST_FINISH,
  PC_REQUEST_PACK,
  PC_REQUEST_FILES, /* files.h */
  PC_REQUEST_FILE,
  PC_REQUEST_REPLACE_ROOT, /* to the launcher: a plan whose operations give the container of PID 1 `value` another root.
                         The result comes on the plan's control socket, unless the reply has failed already. */
  PC_REQUEST_NETWORK,      /* network.h */
  PC_REQUEST_RELAY,   /* to the launcher: one fd, the SEQPACKET socket of a child that relays connections (relay.h).
                         Answered by PC_RECORD_STARTED with its pid, or PC_RECORD_FAILED. */
  PC_REQUEST_SYS,     /* to the launcher, once: the entries of its containers' /sys (helper/root/sys.c) */
  PC_REQUEST_DRAIN,   /* to the agent: read ends of pipes that processes left by an exec may still write to.  It
                         discards what comes until the last writer has closed.  Without an answer. */
  PC_REQUEST_MEASURE, /* to the launcher: struct pc_measure_request, then the name of a tree below the directory sent.
                         Answered by PC_RECORD_GONE with bytes in cpu_user and inodes in cpu_system. */
  PC_REQUEST_FDS,     /* to the launcher: fds that belong to the next PC_REQUEST_SPAWN, for one message carries 253 at
                         most.  `value` is 1 for the first of several.  Without an answer. */
  PC_REQUEST_KIND_COUNT
};

struct pc_request
{
  u32 kind;
  u32 size; /* bytes that follow; with PC_REQUEST_IN_MEMFD they are in the first fd */
  u32 flags;
  u32 id;
  i32 value;
  u32 pad;
};

#define PC_REQUEST_IN_MEMFD 1u
#define PC_REQUEST_AFTER 2u /* PC_REQUEST_REMOVE: wait for the exit of the first fd, a pidfd */

enum pc_record_kind
{
  PC_RECORD_READY = 1,
  PC_RECORD_FAILED,  /* step, error, op */
  PC_RECORD_STARTED, /* value: pid inside; of an exec, with a socket that closes when the command is executed,
                        or carries PC_RECORD_FAILED */
  PC_RECORD_EXITED,  /* value: wait status; and the resource usage of the process and its waited-for children */
  PC_RECORD_GONE,    /* PC_REQUEST_KILL_*: every process is dead */
  PC_RECORD_OPENED,  /* with the fd of PC_REQUEST_OPEN, or with the terminal of an exec before it started */
};

/* PC_REQUEST_MEASURE, followed by the name of the tree. */
struct pc_measure_request
{
  struct pc_request request;
  u64 max_bytes; /* counting stops above either */
  u64 max_inodes;
};

struct pc_record
{
  u32 kind;
  u32 step;
  i32 error;
  i32 op;
  i32 value;
  u32 flags;
  u64 cpu_user;   /* microseconds */
  u64 cpu_system; /* microseconds */
  u64 peak_rss;   /* bytes */
  u64 read;       /* bytes, from block devices */
  u64 written;    /* bytes, to block devices */
};

#endif
