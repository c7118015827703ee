/* The table of processes that the agent started. */
#include "agent.h"

#include <linux/errno.h>

static void
process_ended (struct pc_agent *agent, i32 pid, i32 status, const struct pc_kernel_usage *usage)
{
  for (u32 i = 0; i < agent->count; i++)
    {
      struct pc_process *process = &agent->processes[i];
      if (process->pid != pid)
        continue;
      /* The processes of a killed supervisor are reparented to the agent, where they cannot be distinguished
         from those of other execs: kill all. */
      if (process->command != NULL && SIGNALED (status))
        sys_kill (-1, SIGKILL_);
      if (process->command == NULL || SIGNALED (status))
        {
          /* For a killed supervisor this reports its own SIGKILL, which its command has just received as well. */
          struct pc_record record;
          pc_exited_record (&record, status, usage);
          (void) pc_send_record (process->channel, &record, -1);
        }
      pc_close_fd (&process->channel);
      *process = agent->processes[--agent->count];
      return;
    }
}

word
pc_reap (struct pc_agent *agent, int flags)
{
  word pid;
  for (;;)
    {
      i32 status = 0;
      struct pc_kernel_usage usage;
      pid = sys_wait4 (-1, &status, flags, &usage);
      if (pid == -EINTR)
        continue;
      if (pid < 0 && pid != -ECHILD)
        sys_exit (1); /* no exit could be reported any more */
      if (pid <= 0)
        return pid;
      process_ended (agent, (i32) pid, status, &usage);
    }
}

struct pc_process *
pc_find_process (struct pc_agent *agent, u32 id)
{
  for (u32 i = 0; i < agent->count; i++)
    if (agent->processes[i].id == id)
      return &agent->processes[i];
  return NULL;
}

i32 *
pc_command_slot (struct pc_agent *agent)
{
  if (agent->commands == NULL)
    {
      word map
          = sys_mmap (0, PC_MAX_EXECS * sizeof (i32), PROT_READ_ | PROT_WRITE_, MAP_SHARED_ | MAP_ANONYMOUS_, -1, 0);
      if (map < 0 && map > -4096)
        sys_exit (1); /* an exec without its supervisor could not be ended: fail closed */
      agent->commands = (i32 *) map;
    }
  for (u32 slot = 0; slot < PC_MAX_EXECS; slot++)
    {
      u32 used = 0;
      for (u32 i = 0; i < agent->count; i++)
        used |= agent->processes[i].command == &agent->commands[slot];
      if (!used)
        return &agent->commands[slot];
    }
  return NULL;
}
