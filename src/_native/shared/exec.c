/* The last controls before a guest's execve, in the order of steps.h, and the execve. */
#include "controls.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>

static int
set_rlimits (const void *base, struct pc_ref ref)
{
  const struct pc_rlimit *limits = pc_at (base, ref);

  for (u32 i = 0; i < ref.size / sizeof *limits; i++)
    {
      u64 values[2] = { limits[i].soft, limits[i].hard };
      u64 old[2];
      word error = sys_prlimit64 (0, limits[i].resource, 0, old);
      if (error < 0)
        return (int) error;
      /* A hard limit cannot be raised without CAP_SYS_RESOURCE on the host: stay below it. */
      if (values[1] > old[1])
        values[1] = old[1];
      if (values[0] > values[1])
        values[0] = values[1];
      error = sys_prlimit64 (0, limits[i].resource, values, 0);
      if (error < 0)
        return (int) error;
    }
  return 0;
}

static int
set_user (const struct pc_exec *exec, struct pc_failure *failure)
{
  word error;

  /* setgroups is denied for good where the id map was written without privilege. */
  error = sys_setgroups (exec->groups.size / 4, pc_at (exec, exec->groups));
  if (error < 0 && !(error == -EPERM && exec->groups.size == 0))
    return pc_control_failed (failure, PC_STEP_GROUPS, error);
  error = sys_setresgid (exec->gid, exec->gid, exec->gid);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_USER, error);
  /* The capabilities that still have to be set or dropped must survive the change of uid. */
  error = sys_prctl (PR_SET_KEEPCAPS, 1, 0);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_USER, error);
  error = sys_setresuid (exec->uid, exec->uid, exec->uid);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_USER, error);
  return 0;
}

#define MAX_POINTERS 65536

static char *pointers[MAX_POINTERS];
static char path_buffer[4096];

static char **
unpack_strings (const struct pc_exec *exec, struct pc_ref ref, u32 count, u32 *next)
{
  if (count >= MAX_POINTERS - *next)
    return NULL;
  char **list = &pointers[*next];
  char *at = (char *) (usize) pc_at (exec, ref);
  for (u32 i = 0; i < count; i++)
    {
      list[i] = at;
      at += pc_strlen (at) + 1;
    }
  list[count] = NULL;
  *next += count + 1;
  return list;
}

/* Look the command up along PATH, as execvp(3): EACCES is returned if no other directory has it. */
static word
search_and_execute (const char *search, char **argv, char **env)
{
  word result = -ENOENT;
  usize name = pc_strlen (argv[0]);

  for (const char *at = search;;)
    {
      usize n = 0;
      while (at[n] != '\0' && at[n] != ':')
        n++;
      if (n > 0 && n + name + 2 <= sizeof path_buffer)
        {
          memcpy (path_buffer, at, n);
          path_buffer[n] = '/';
          memcpy (path_buffer + n + 1, argv[0], name + 1);
          word error = sys_execve (path_buffer, argv, env);
          if (error != -ENOENT && error != -ENOTDIR)
            result = error;
          if (error != -ENOENT && error != -ENOTDIR && error != -EACCES)
            return error;
        }
      if (at[n] == '\0')
        return result;
      at += n + 1;
    }
}

static word
execute (const struct pc_exec *exec)
{
  u32 next = 0;
  char **argv = unpack_strings (exec, exec->argv, exec->argc, &next);
  char **env = argv ? unpack_strings (exec, exec->env, exec->envc, &next) : NULL;

  if (argv == NULL || env == NULL)
    return -E2BIG;
  for (const char *at = argv[0]; *at != '\0'; at++)
    if (*at == '/')
      return sys_execve (argv[0], argv, env);
  if (argv[0][0] == '\0')
    return -ENOENT;
  return search_and_execute (pc_at (exec, exec->search), argv, env);
}

/* Enter the working directory.  Magic links are refused: through /proc/self/fd the path could lead to a
   directory of the host that a process holds open (CVE-2024-21626). */
static word
enter_workdir (const char *path)
{
  struct open_how how = {
    .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
    .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
  };
  cleanup_fd int root = (int) sys_openat (AT_FDCWD_, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  if (root < 0)
    return root;
  cleanup_fd int fd = (int) sys_openat2 (root, path, &how);
  return fd < 0 ? fd : sys_fchdir (fd);
}

/* Install the filter while CAP_SYS_ADMIN is left.  It may refuse the calls that enter the working directory, so that
   comes first, with the capabilities that the guest will have. */
static int
filter_with_capabilities (const struct pc_security *security, const struct pc_exec *exec, struct pc_failure *failure)
{
  word error = pc_make_effective (security->capabilities);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_CAPABILITIES, error);
  error = enter_workdir (pc_at (exec, exec->workdir));
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_WORKDIR, error);
  error = pc_make_effective (~0ull);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_CAPABILITIES, error);
  error = pc_install_filter (pc_at (security, security->seccomp), security->seccomp.size / 8);
  return error < 0 ? pc_control_failed (failure, PC_STEP_SECCOMP, error) : 0;
}

static int
become_user (const struct pc_security *security, const struct pc_exec *exec, struct pc_failure *failure)
{
  u64 unblocked = 0;
  word error = set_rlimits (security, security->rlimits);

  if (error == 0)
    error = set_rlimits (exec, exec->rlimits);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_RLIMIT, error);
  sys_umask (exec->umask);
  if (set_user (exec, failure) < 0)
    return -1;
  error = sys_rt_sigprocmask (SIG_SETMASK_, &unblocked, 0, 8);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_SESSION, error);
  /* The change of uid has emptied the effective set, and the capabilities below are dropped with CAP_SETPCAP. */
  error = exec->uid != 0 ? pc_make_effective (~0ull) : 0;
  return error < 0 ? pc_control_failed (failure, PC_STEP_CAPABILITIES, error) : 0;
}

static int
give_up_privileges (const struct pc_security *security, const struct pc_exec *exec, struct pc_failure *failure)
{
  /* Without no_new_privs a filter needs CAP_SYS_ADMIN, which is gone one step later. */
  int filter_first = !(security->flags & PC_SECURITY_NO_NEW_PRIVS) && security->seccomp.size > 0;
  if (filter_first && filter_with_capabilities (security, exec, failure) < 0)
    return -1;
  if (pc_limit_capabilities (security->capabilities, security->securebits, failure) < 0)
    return -1;
  /* As the new user and without capabilities, so that the directory is one that this user may enter. */
  word error = filter_first ? 0 : enter_workdir (pc_at (exec, exec->workdir));
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_WORKDIR, error);
  if (security->flags & PC_SECURITY_NO_NEW_PRIVS)
    {
      error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
      if (error < 0)
        return pc_control_failed (failure, PC_STEP_NO_NEW_PRIVS, error);
    }
  if (security->seccomp.size > 0 && !filter_first)
    {
      error = pc_install_filter (pc_at (security, security->seccomp), security->seccomp.size / 8);
      if (error < 0)
        return pc_control_failed (failure, PC_STEP_SECCOMP, error);
    }
  return 0;
}

void
pc_become_guest (const struct pc_security *security, const struct pc_exec *exec, struct pc_failure *failure)
{
  if (become_user (security, exec, failure) == 0 && give_up_privileges (security, exec, failure) == 0)
    (void) pc_control_failed (failure, PC_STEP_EXEC, execute (exec));
}
