/* Internal interface of the agent. */
#ifndef PC_AGENT_H
#define PC_AGENT_H

#include "controls.h"
#include "plan.h"
#include "wire.h"

#define PC_MAX_EXECS 4096
#define PC_MAX_DRAINED 512

struct pc_process
{
  i32 pid; /* of the command, or of its supervisor */
  u32 id;
  i32 channel;  /* where the caller waits, or -1 once answered */
  i32 *command; /* pid of a supervised command in shared memory: -1 before the clone, 0 after the exit; else NULL */
};

struct pc_agent
{
  const struct pc_security *security;
  int proc;      /* /proc of this container, opened before any guest ran, or -1 */
  int signals;   /* signalfd for SIGCHLD, or the negative errno that serve_security reports */
  int terminals; /* /dev/pts of this container, or -1 */
  struct pc_process processes[PC_MAX_EXECS];
  u32 count;
  i32 *commands;               /* shared with the supervisors */
  int drained[PC_MAX_DRAINED]; /* read ends of pipes whose output is discarded */
  u32 drained_count;
};

/* Reap every child that has exited and report it.  Without WNOHANG, wait until no child is left. */
word pc_reap (struct pc_agent *agent, int flags);
/* The process of the exec `id`, or NULL. */
struct pc_process *pc_find_process (struct pc_agent *agent, u32 id);
void pc_start_exec (struct pc_agent *agent, const struct pc_exec *exec, struct pc_fds *fds);
/* Return a free place in the table that supervisors share with the agent, or NULL. */
i32 *pc_command_slot (struct pc_agent *agent);
/* Supervise one exec as the subreaper of its processes, and exit with the last of them. */
_Noreturn void pc_supervise (i32 *command, int channel);
/* Kill every descendant of root.  0 when none is left, or a negative errno when that is not certain. */
int pc_kill_tree (int proc, i32 root, const i32 *command);

#endif
