/* Start of one process of the guest: its cgroup, its streams, its controls, its execve. */
#include "agent.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>

static void
answer_failure (int channel, u32 step, word error)
{
  struct pc_record record = { 0 };
  (void) pc_failed (&record, step, error, -1);
  (void) pc_send_record (channel, &record, -1);
}

struct streams
{
  int stdio[3];
  int cgroup;
  int tasks[16];
  int terminal; /* the master's fd of a pty */
  int peer;
};

static int
open_terminal (const struct pc_agent *agent, const struct pc_exec *exec, struct streams *streams)
{
  i32 unlocked = 0;
  u16 size[4] = { exec->rows, exec->columns, 0, 0 };

  if (agent->terminals < 0)
    return -ENODEV;
  streams->terminal = (int) sys_openat (agent->terminals, "ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (streams->terminal < 0)
    return streams->terminal;
  word error = sys_ioctl (streams->terminal, TIOCSPTLCK_, &unlocked);
  if (error < 0)
    return (int) error;
  /* The peer comes from the master itself: no path of the guest is walked. */
  streams->peer = (int) sys_ioctl (streams->terminal, TIOCGPTPEER_, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (streams->peer < 0)
    return streams->peer;
  return (int) sys_ioctl (streams->terminal, TIOCSWINSZ_, size);
}

static int
assign_streams (const struct pc_exec *exec, const struct pc_fds *fds, struct streams *streams)
{
  static const u32 bits[] = { PC_EXEC_STDIN, PC_EXEC_STDOUT, PC_EXEC_STDERR };
  u32 next = 1; /* the channel is first */

  for (u32 i = 0; i < 3; i++)
    {
      streams->stdio[i] = -1;
      if (exec->flags & bits[i])
        {
          if (next >= fds->count)
            return -EBADF;
          streams->stdio[i] = fds->fd[next++];
        }
    }
  streams->cgroup = -1;
  if (exec->flags & PC_EXEC_CGROUP)
    {
      if (next >= fds->count)
        return -EBADF;
      streams->cgroup = fds->fd[next++];
    }
  if (exec->tasks_count > COUNT (streams->tasks) || exec->tasks_count > fds->count - next)
    return -EBADF;
  for (u32 i = 0; i < exec->tasks_count; i++)
    streams->tasks[i] = fds->fd[next++];
  return 0;
}

_Noreturn static void
fail_child (int channel, u32 step, word error)
{
  answer_failure (channel, step, error);
  sys_exit (127);
}

static int
take_streams (struct streams *streams, int pty)
{
  int fds[3];

  for (u32 i = 0; i < 3; i++)
    {
      int fd = pty ? streams->peer : streams->stdio[i];
      if (fd < 0)
        fd = (int) sys_openat (AT_FDCWD_, "/dev/null", O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
      if (fd < 0)
        return fd;
      /* Above 2, so that no dup3 of another stream overwrites it. */
      fds[i] = (int) sys_fcntl (fd, F_DUPFD_CLOEXEC, 3);
      if (fds[i] < 0)
        return fds[i];
    }
  return pc_set_stdio (fds);
}

_Noreturn static void
run_child (const struct pc_agent *agent, const struct pc_exec *exec, struct streams *streams, int channel)
{
  struct pc_failure failure = { 0, 0 };
  int pty = exec->flags & PC_EXEC_PTY ? 1 : 0;
  word error;

  for (u32 i = 0; i < exec->tasks_count; i++)
    if ((error = sys_write (streams->tasks[i], "0", 1)) < 0)
      fail_child (channel, PC_STEP_CGROUP, error);
  if ((error = sys_setsid ()) < 0)
    fail_child (channel, PC_STEP_SESSION, error);
  if (pty && (error = sys_ioctl (streams->peer, TIOCSCTTY_, 0)) < 0)
    fail_child (channel, PC_STEP_TERMINAL, error);
  if ((error = take_streams (streams, pty)) < 0 || (error = pc_close_all_but (&channel, 1)) < 0)
    fail_child (channel, PC_STEP_STDIO, error);
  pc_become_guest (agent->security, exec, &failure);
  fail_child (channel, failure.step, -failure.error);
}

static word
clone_into (int cgroup)
{
  struct clone_args args = { .exit_signal = SIGCHLD_ };

  if (cgroup >= 0)
    {
      args.flags |= CLONE_INTO_CGROUP;
      args.cgroup = (u64) cgroup;
    }
  return sys_clone3 (&args, sizeof args);
}

/* pids.max counts a killed process until it is reaped, and SIGCHLD for it may arrive after this request.  So reap and
   try again for up to 10 ms. */
static word
clone_when_reaped (struct pc_agent *agent, int cgroup)
{
  i64 pause[2] = { 0, 1000000 };

  for (u32 try = 0;; try++)
    {
      word pid = clone_into (cgroup);
      if (pid != -EAGAIN || try == 10)
        return pid;
      pc_reap (agent, WNOHANG_);
      sys_nanosleep (pause, 0);
    }
}

/* Report the start.  Each message wakes the caller, so a caller that waits for the exit only sets PC_EXEC_QUIET. */
static void
report_started (const struct streams *streams, int channel, word pid, int outcome)
{
  struct pc_record opened = { .kind = PC_RECORD_OPENED };
  struct pc_record started = { .kind = PC_RECORD_STARTED, .value = (i32) pid };

  if (streams->terminal >= 0)
    (void) pc_send_record (channel, &opened, streams->terminal);
  (void) pc_send_record (channel, &started, outcome);
}

/* Clone the command and report it.  Returns its pid, or a negative errno that has been reported already.

   Unless only the exit is reported, the child gets a socket of its own for failures in place of the channel.  The
   caller holds the other end.  execve(2) closes the socket, by which the caller learns that the command runs, without
   a wait in the agent. */
static word
start_command (struct pc_agent *agent, const struct pc_exec *exec, struct streams *streams, int channel, i32 *command)
{
  int quiet = exec->flags & PC_EXEC_QUIET ? 1 : 0;
  int outcome[2] = { -1, -1 };
  word error = quiet ? 0 : sys_socketpair (AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0, outcome);

  if (error < 0)
    {
      answer_failure (channel, PC_STEP_STDIO, error);
      if (command != NULL)
        *command = 0;
      return error;
    }
  word pid = command != NULL ? clone_into (streams->cgroup) : clone_when_reaped (agent, streams->cgroup);
  if (pid == 0)
    run_child (agent, exec, streams, quiet ? channel : outcome[1]);
  pc_close_fd (&outcome[1]);
  if (pid < 0)
    {
      answer_failure (channel, PC_STEP_CLONE, pid);
      if (command != NULL)
        *command = 0;
    }
  else
    {
      /* Before the report: a signal that the caller sends next must find its target. */
      if (command != NULL)
        __atomic_store_n (command, (i32) pid, __ATOMIC_RELEASE);
      if (!quiet)
        report_started (streams, channel, pid, outcome[0]);
    }
  pc_close_fd (&outcome[0]);
  return pid;
}

_Noreturn static void
run_supervisor (struct pc_agent *agent, const struct pc_exec *exec, struct streams *streams, int channel,
                i32 *command)
{
  /* Before the clone, so that the first orphan is already reparented to this process. */
  word error = sys_prctl (PR_SET_CHILD_SUBREAPER, 1, 0);
  if (error < 0)
    fail_child (channel, PC_STEP_SESSION, error);
  pc_close_fd (&streams->cgroup); /* the clone inherits the cgroup of this process */
  if (start_command (agent, exec, streams, channel, command) < 0)
    sys_exit (127);
  pc_supervise (command, channel);
}

static word
start_supervisor (struct pc_agent *agent, const struct pc_exec *exec, struct streams *streams, int channel,
                  i32 *command)
{
  word pid = clone_when_reaped (agent, streams->cgroup);
  if (pid == 0)
    run_supervisor (agent, exec, streams, channel, command);
  if (pid < 0)
    answer_failure (channel, PC_STEP_CLONE, pid);
  return pid;
}

void
pc_start_exec (struct pc_agent *agent, const struct pc_exec *exec, struct pc_fds *fds)
{
  struct streams streams = { .terminal = -1, .peer = -1 };
  i32 *command = NULL;

  if (fds->count == 0)
    return;
  int channel = fds->fd[0];
  int error = assign_streams (exec, fds, &streams);
  if (error == 0 && agent->count == PC_MAX_EXECS)
    error = -EAGAIN;
  if (error < 0)
    {
      answer_failure (channel, PC_STEP_STDIO, error);
      return;
    }
  if (exec->flags & PC_EXEC_PTY && (error = open_terminal (agent, exec, &streams)) < 0)
    {
      pc_close_fd (&streams.terminal);
      answer_failure (channel, PC_STEP_TERMINAL, error);
      return;
    }
  if (agent->security->flags & PC_SECURITY_SUPERVISE)
    command = pc_command_slot (agent);
  if (command != NULL)
    *command = -1;
  word pid = command != NULL ? start_supervisor (agent, exec, &streams, channel, command)
                             : start_command (agent, exec, &streams, channel, NULL);
  pc_close_fd (&streams.peer);
  pc_close_fd (&streams.terminal);
  if (pid < 0)
    return;
  agent->processes[agent->count++] = (struct pc_process) {
    .pid = (i32) pid,
    .id = exec->id,
    .channel = pc_steal_fd (&fds->fd[0]),
    .command = command,
  };
}
