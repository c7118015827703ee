/* What the files of the launcher share. */
#ifndef PC_LAUNCHER_H
#define PC_LAUNCHER_H

#include "identity.h"
#include "network.h"
#include "plan.h"
#include "wire.h"

/* A child that has been born and waits. */
struct pc_born
{
  i32 pid;   /* 0: none */
  int pidfd;
  int sync;
};

struct pc_launcher
{
  int socket;
  int agent;       /* the agent's image */
  int host_mounts; /* namespace in which paths of a plain user's caller resolve, or -1 */
  int own_mounts;
  int dev;         /* detached /dev template, or -1 when it stays attached at /dev */
  int sys;         /* detached /sys template, or -1 when it stays attached at /sys */
  int has_sys;
  int privileged;  /* root: containers get ids of their own */
  struct pc_born spare;
  int old_layers;  /* overlay takes no detached mounts here: attach, then name by path */
};

struct pc_root
{
  int root; /* O_PATH fds, or -1 */
  int base; /* the mount that the root lies on, which outlives it */
  int old;  /* the root that is to be replaced */
};

/* With the fds of a plan's sources: `store`, `dev` and `sys` say which come before them, `more` that others follow. */
struct pc_sources_head
{
  u32 store;
  u32 dev;
  u32 sys;
  u32 more;
};

struct pc_child_fds
{
  int control;
  int sync;
  int store;
  int dev;
  int sys;
  int sources[COUNT (((struct pc_fds *) 0)->fd)];
  u32 source_count;
};

/* Make the /sys of this launcher's containers, once; 0 or a negative errno. */
int pc_make_sys (struct pc_launcher *launcher, const char *entries, usize size, const struct pc_fds *fds);
struct clone_args;
/* As root, clone a container so that its user namespace belongs to its own first id. */
word pc_clone_owned (const struct pc_plan *plan, const struct clone_args *args);
int pc_prepare_namespace (struct pc_launcher *launcher, int plain_user, struct pc_record *failure);
/* Start what the plan says; the reply names the pid, or the step that failed. */
int pc_spawn (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds,
              struct pc_record *reply);
/* Let a child wait for a plan, in place of one that waits already. */
void pc_prepare_spare (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds);
_Noreturn void pc_spare_child (const struct pc_launcher *launcher, const struct pc_plan *plan,
                               const struct pc_fds *fds, int sync);
/* Do file operations: a letter, the place in fds of a directory, a path below it, and for some a text, each
   string with its NUL.  m makes a group, c gives a file away, w writes, d and t open and add to fds. */
int pc_run_script (const char *script, usize size, struct pc_fds *fds);
_Noreturn void pc_child (const struct pc_launcher *launcher, const struct pc_plan *plan,
                         const struct pc_fds *fds, int control, int sync);
/* Fill the root with what the plan's operations say; 0 and *root, or -1 and *op, *failure. */
int pc_build_root (const struct pc_launcher *launcher, const struct pc_plan *plan,
                   struct pc_child_fds *fds, struct pc_root *root, i32 *op, struct pc_failure *failure);
/* Give a container whose agent is alone another root; the reply says whether the child that does it lives. */
void pc_restack (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                 i32 pid, struct pc_record *reply);
/* Let a child relay connections as its socket, the one fd, says (relay.h). */
void pc_start_relay (const struct pc_fds *fds, struct pc_record *reply);
/* What a child of a launcher shares with another. */
_Noreturn void pc_die (int control, u32 step, word error, i32 op);
void pc_receive_sources (int control, int sync, struct pc_child_fds *out);
void pc_become_root_inside (const struct pc_plan *plan, int control);
int pc_send_sources (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                     word pid, int sync, struct pc_record *reply);
/* The root stands in its base: another can take its place while whoever is inside goes on. */
int pc_enter (int root);
int pc_failed (struct pc_record *reply, u32 step, word error, i32 op);

#define CHECK(step, expression)                                                                    \
  do                                                                                               \
    {                                                                                              \
      word check_error = (expression);                                                             \
      if (check_error < 0)                                                                         \
        pc_die (control, step, check_error, -1);                                                   \
    }                                                                                              \
  while (0)

/* Remove what stands at name below dir, whatever its depth; 0 or a negative errno. */
int pc_remove_tree (int dir, const char *name);
#define PC_MEASURE_DEPTH 256u

struct pc_measured
{
  u64 bytes;
  u64 inodes;
};

/* What the tree at name below dir takes, until it is more than either bound; 0 or a negative errno. */
int pc_measure_tree (int dir, const char *name, u64 most_bytes, u64 most_inodes, struct pc_measured *out);
/* Remove the cgroup name below dir and every one in it; 0 or a negative errno. */
int pc_remove_group (int dir, const char *name);
/* Serve a container's files from now on. */
_Noreturn void pc_serve_files (int socket, const struct pc_request *request, const struct pc_fds *fds);
/* A network namespace for what a plain user's containers are linked to; 0, or -1 and *failure. */
int pc_make_hub (struct pc_record *failure);
int pc_raise_loopback (void);
/* Sockets of a network namespace, sent as they come; 0, or -1 and the reply. */
int pc_network (int socket, const struct pc_network_request *request, usize received, const struct pc_fds *fds,
                struct pc_record *reply);
/* Give what is inherited defined values, whatever the caller's are. */
void pc_reset_ambient (void);
void pc_watch_child (i32 pid, int exit_fd);
void pc_reap_children (struct pc_launcher *launcher);
/* A child was reaped: if it is the one that waits, nobody waits any more. */
void pc_spare_ended (struct pc_launcher *launcher, i32 pid);

#endif
