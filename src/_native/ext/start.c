/* Start a launcher from sealed memory.  Between vfork and execveat only system calls happen. */
#define _GNU_SOURCE
#include "extension.h"
#include "programs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U
#endif

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define ABOVE_STDIO 16

static int
write_all (int fd, const char *data, size_t size)
{
  for (size_t done = 0; done < size;)
    {
      ssize_t n = write (fd, data + done, size - done);
      if (n < 0 && errno != EINTR)
        return -errno;
      done += n > 0 ? (size_t) n : 0;
    }
  return 0;
}

/* Write in a child that raises its own RLIMIT_FSIZE to the hard limit: the limit applies to a memfd too, and the
   caller's must not change. */
static int
write_by_child (int fd, const char *data, size_t size)
{
  sigset_t all, before;
  struct rlimit limit;
  volatile int result = 0;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  pid_t child = vfork ();
  if (child == 0)
    {
      if (syscall (SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit) == 0)
        {
          limit.rlim_cur = limit.rlim_max;
          syscall (SYS_prlimit64, 0, RLIMIT_FSIZE, &limit, NULL);
        }
      result = write_all (fd, data, size);
      _exit (0);
    }
  int error = child < 0 ? -errno : 0;
  while (child > 0 && waitpid (child, NULL, 0) < 0 && errno == EINTR)
    continue;
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return error < 0 ? error : result;
}

static int
write_memory (int fd, const char *data, size_t size)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < size)
    return write_by_child (fd, data, size);
  return write_all (fd, data, size);
}

static int
sealed (const char *name, const char *data, size_t size, unsigned int exec_flag, mode_t mode)
{
  int fd = memfd_create (name, MFD_CLOEXEC | MFD_ALLOW_SEALING | exec_flag);
  if (fd < 0 && errno == EINVAL) /* before 6.3 every memfd may be executed */
    fd = memfd_create (name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return -errno;
  int error = write_memory (fd, data, size);
  if (error < 0)
    {
      close (fd);
      return error;
    }
  /* A process whose program only root may read belongs to the host's user namespace, not to the container's
     (would_dump in the kernel).  So root in a guest does not own the files of its PID 1 in /proc. */
  if ((mode != 0 && fchmod (fd, mode) < 0) || fcntl (fd, F_ADD_SEALS, SEALS) < 0)
    {
      error = -errno;
      close (fd);
      return error;
    }
  return fd;
}

int
pcx_sealed_memory (const char *name, const char *data, size_t size)
{
  return sealed (name, data, size, 0, 0);
}

struct start_fds
{
  int socket;
  int launcher;
  int agent;
  int null;
};

static void
close_start_fds (struct start_fds *fds)
{
  int all[] = { fds->socket, fds->launcher, fds->agent, fds->null };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (all[i] >= 0)
      close (all[i]);
}

/* Move an fd above the numbers that the child assigns, so that no dup3(2) overwrites one that is still needed. */
static int
lift (int fd)
{
  if (fd < 0)
    return fd;
  int lifted = fcntl (fd, F_DUPFD_CLOEXEC, ABOVE_STDIO);
  int error = errno;
  close (fd);
  return lifted < 0 ? -error : lifted;
}

static int
opened (const char *path)
{
  int fd = open (path, O_RDWR | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

#define SENTINEL 4

_Noreturn static void
become_launcher (const struct start_fds *fds, int kind)
{
  char name[] = "pycontain-launcher";
  char rootless[] = "rootless";
  char files[] = "files";
  char rootless_netns[] = "rootless-netns";
  char sentinel[] = "sentinel";
  char *kinds[] = { NULL, rootless, files, rootless_netns, sentinel };
  char *argv[] = { name, kind >= 0 && kind <= SENTINEL ? kinds[kind] : NULL, NULL };
  char *env[] = { NULL };

  /* A sentinel stays in the caller's process group, which a terminal signals on Ctrl-C. */
  if (kind != SENTINEL)
    syscall (SYS_setsid);
  for (int i = 0; i < 3; i++)
    if (syscall (SYS_dup3, fds->null, i, 0) < 0)
      _exit (127);
  if (syscall (SYS_dup3, fds->socket, 3, 0) < 0 || syscall (SYS_dup3, fds->agent, 4, 0) < 0
      || syscall (SYS_close_range, 5, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */) < 0)
    _exit (127);
  syscall (SYS_execveat, fds->launcher, "", argv, env, AT_EMPTY_PATH);
  _exit (127);
}

/* Start the launcher as a grandchild, so that the caller gets no SIGCHLD for it and waitpid(-1) never returns it. */
static pid_t
fork_twice (const struct start_fds *fds, int kind)
{
  volatile pid_t launcher = -1;
  volatile int error = 0;
  pid_t child = vfork ();
  if (child == 0)
    {
      launcher = vfork ();
      if (launcher == 0)
        become_launcher (fds, kind);
      error = errno;
      _exit (0);
    }
  if (child < 0)
    return -errno;
  while (waitpid (child, NULL, 0) < 0 && errno == EINTR)
    continue;
  return launcher < 0 ? -error : launcher;
}

int
pcx_start_launcher (int kind, int *socket_out, int *pidfd_out)
{
  int pair[2];
  sigset_t all, before;
  struct start_fds fds = { -1, -1, -1, -1 };

  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return -errno;
  fds.socket = lift (pair[1]);
  fds.launcher = lift (sealed ("pycontain-launcher", pcx_launcher_start,
                               (size_t) (pcx_launcher_end - pcx_launcher_start), MFD_EXEC, 0));
  fds.agent = lift (
      sealed ("pycontain-agent", pcx_agent_start, (size_t) (pcx_agent_end - pcx_agent_start), MFD_EXEC, 0111));
  fds.null = lift (opened ("/dev/null"));
  int worst = fds.socket < 0 ? fds.socket : fds.launcher < 0 ? fds.launcher : fds.agent < 0 ? fds.agent : fds.null;
  if (worst < 0)
    {
      close_start_fds (&fds);
      close (pair[0]);
      return worst;
    }
  /* After vfork(2) the child shares the caller's memory, so no signal handler of the caller may run in it. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  pid_t pid = fork_twice (&fds, kind);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  close_start_fds (&fds);
  if (pid < 0)
    {
      close (pair[0]);
      return (int) pid;
    }
  *pidfd_out = (int) syscall (SYS_pidfd_open, pid, 0);
  if (*pidfd_out < 0)
    {
      int error = errno;
      close (pair[0]);
      return -error;
    }
  *socket_out = pair[0];
  return (int) pid;
}
