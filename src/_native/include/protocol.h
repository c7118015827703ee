/* Messages between caller, launcher and agent.  All sockets are SOCK_SEQPACKET. */
#ifndef PC_PROTOCOL_H
#define PC_PROTOCOL_H

#include "raw.h"

#define PC_AGENT_CONTROL_FD 3
#define PC_LAUNCHER_FD 3
#define PC_AGENT_IMAGE_FD 4

enum pc_request_kind
{
  PC_REQUEST_SPAWN = 1, /* caller to launcher: a plan; for a spare `value` bytes of it, then a script */
  PC_REQUEST_MAPS,      /* caller to launcher: the id maps of its own namespace stand */
  PC_REQUEST_REMOVE,    /* caller to launcher: below each directory sent, a letter and a name: t for a
                           tree, g for a cgroup and those in it, k for what is kept until then */
  PC_REQUEST_SECURITY,  /* caller to agent */
  PC_REQUEST_EXEC,
  PC_REQUEST_SIGNAL,    /* to the exec `id`, signal `value` */
  PC_REQUEST_KILL_TREE, /* every process of the exec `id` */
  PC_REQUEST_KILL_ALL,  /* every process but the agent */
  PC_REQUEST_OPEN,      /* open a path beneath the root and send the fd back */
};

struct pc_request
{
  u32 kind;
  u32 size;  /* bytes that follow; when PC_REQUEST_IN_MEMFD they stand in the first fd */
  u32 flags;
  u32 id;
  i32 value;
  u32 pad;
};

/* PC_REQUEST_PREPARE, caller to launcher: do a script's file operations below the directories sent, then let a
   child with the plan's namespaces, ids and groups wait for a plan.  `value` bytes of plan, then the script.
   Nothing is answered: who claims a spare that is not there is told so. */
#define PC_REQUEST_PREPARE 10u
#define PC_REQUEST_UNPACK 11u /* layer.h */
#define PC_REQUEST_FINISH 12u
#define PC_REQUEST_PACK 13u
/* PC_REQUEST_RESTACK, caller to launcher: a plan whose operations give the container of PID 1 `value` another
   root.  What became of it is told on the plan's control socket, unless the reply has failed already. */
#define PC_REQUEST_RESTACK 16u
/* PC_REQUEST_RELAY, caller to launcher: one fd, the SEQPACKET socket of a child that relays connections
   (relay.h).  Answered by PC_RECORD_STARTED with its pid, or PC_RECORD_FAILED. */
#define PC_REQUEST_RELAY 18u
/* PC_REQUEST_SYS, caller to launcher: what the /sys of its containers has, once (sysview.c) */
#define PC_REQUEST_SYS 19u
/* PC_REQUEST_MEASURE, caller to launcher: two u64, the most bytes and inodes to count, and the name of a tree below
   the directory sent.  Answered by PC_RECORD_GONE with bytes in cpu_user and inodes in cpu_system. */
#define PC_REQUEST_MEASURE 28u
#define PC_REQUEST_FILES 14u /* files.h */
#define PC_REQUEST_FILE 15u
#define PC_REQUEST_NETWORK 17u /* network.h */
/* PC_REQUEST_DRAIN, caller to agent: read ends of pipes that a finished exec's processes may still write to.
   The agent reads and discards until their last writer is gone.  Nothing is answered. */
#define PC_REQUEST_DRAIN 19u

/* PC_REQUEST_FDS, caller to launcher: fds that follow those of the next PC_REQUEST_SPAWN, for one message takes
   253 at most.  `value` is 1 for the first of several.  Nothing is answered. */
#define PC_REQUEST_FDS 30u

#define PC_REQUEST_IN_MEMFD 1u
#define PC_REQUEST_AFTER 2u /* PC_REQUEST_REMOVE: the first fd is a pidfd whose end to wait for */

enum pc_record_kind
{
  PC_RECORD_READY = 1,
  PC_RECORD_FAILED,  /* step, error, op */
  PC_RECORD_STARTED, /* value: pid inside; of an exec, with a socket that ends when its command is executed,
                        or brings PC_RECORD_FAILED */
  PC_RECORD_EXITED,  /* value: wait status, and the usage of the waited-for tree */
  PC_RECORD_GONE,    /* PC_REQUEST_KILL_*: every process is dead */
  PC_RECORD_OPENED,  /* with the fd of PC_REQUEST_OPEN, or with the terminal of an exec before it started */
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
