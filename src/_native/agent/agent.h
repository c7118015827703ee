/* What the files of the agent share. */
#ifndef PC_AGENT_H
#define PC_AGENT_H

#include "controls.h"
#include "plan.h"
#include "wire.h"

#define PC_MAX_EXECS 4096
#define PC_MAX_DRAINED 512

struct pc_process
{
  i32 pid;       /* of the command, or of its supervisor */
  u32 id;
  i32 channel;   /* where the caller waits, or -1 once answered */
  i32 *command;  /* under a supervisor: where that keeps the command's pid, else NULL; -1 before its birth */
};

struct pc_agent
{
  const struct pc_security *security;
  int proc;      /* /proc of this container, opened before any guest ran, or -1 */
  int signals;   /* tells of children that ended, or a negative errno: the caller hears of it */
  int terminals; /* /dev/pts of this container, or -1 */
  struct pc_process processes[PC_MAX_EXECS];
  u32 count;
  i32 *commands; /* shared with the supervisors */
  int drained[PC_MAX_DRAINED]; /* read ends of pipes whose output is discarded */
  u32 drained_count;
};

/* Take the end of every child that has ended, and tell of it; with 0 for flags, wait for the last. */
word pc_reap (struct pc_agent *agent, int flags);
/* The process of the exec `id`, or NULL. */
struct pc_process *pc_find_process (struct pc_agent *agent, u32 id);
void pc_start_exec (struct pc_agent *agent, const struct pc_exec *exec, struct pc_fds *fds);
/* A free place in the table that supervisors share with the agent. */
i32 *pc_command_slot (struct pc_agent *agent);
/* The supervisor of one exec: its orphans come to it, and it ends when the last of them does. */
_Noreturn void pc_supervise (i32 *command, int channel);
/* Kill every descendant of root until none is left; 0, or a negative errno when that cannot be said. */
int pc_kill_tree (int proc, i32 root, const i32 *command);

#endif
