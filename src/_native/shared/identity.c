/* The last controls before a guest's execve, in the order of steps.h. */
#include "identity.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>

#define LAST_CAP_GUESS 63

struct landlock_ruleset
{
  u64 handled_fs;
  u64 handled_net;
  u64 scoped;
};

struct landlock_beneath
{
  u64 allowed;
  i32 parent_fd;
} __attribute__ ((packed));

static int
fail (struct pc_failure *failure, u32 step, word error)
{
  failure->step = step;
  failure->error = (i32) -error;
  return -1;
}

static int
set_rlimits (const void *base, struct pc_ref ref)
{
  const struct pc_rlimit *limits = pc_at (base, ref);

  for (u32 i = 0; i < ref.size / sizeof *limits; i++)
    {
      u64 values[2] = { limits[i].soft, limits[i].hard };
      u64 old[2];
      word error = raw4 (__NR_prlimit64, 0, limits[i].resource, 0, old);
      if (error < 0)
        return (int) error;
      /* A hard limit cannot be raised without CAP_SYS_RESOURCE on the host: stay below it. */
      if (values[1] > old[1])
        values[1] = old[1];
      if (values[0] > values[1])
        values[0] = values[1];
      error = raw4 (__NR_prlimit64, 0, limits[i].resource, values, 0);
      if (error < 0)
        return (int) error;
    }
  return 0;
}

static int
set_capabilities (u64 permitted)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2] = {
    { .effective = (u32) permitted, .permitted = (u32) permitted },
    { .effective = (u32) (permitted >> 32), .permitted = (u32) (permitted >> 32) },
  };
  return (int) raw2 (__NR_capset, &header, data);
}

/* What is left to drop needs every permitted capability once more; a change of uid away from 0 empties the
   effective set. */
static int
make_effective (u64 wanted)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2];
  word error = raw2 (__NR_capget, &header, data);

  if (error < 0)
    return (int) error;
  for (u32 i = 0; i < 2; i++)
    data[i].effective = data[i].permitted & (u32) (wanted >> 32 * i);
  return (int) raw2 (__NR_capset, &header, data);
}

/* What may still be in the bounding set; a child has its parent's knowledge. */
static u64 bounding = ~0ull;

static int
drop_bounding (u64 keep)
{
  for (word cap = 0; cap <= LAST_CAP_GUESS; cap++)
    {
      if (keep & (1ull << cap) || !(bounding & (1ull << cap)))
        continue;
      word error = sys_prctl (PR_CAPBSET_DROP, cap, 0);
      if (error == -EINVAL && sys_prctl (PR_CAPBSET_READ, cap, 0) < 0)
        break; /* past the kernel's last capability */
      if (error < 0)
        return (int) error;
    }
  bounding &= keep;
  return 0;
}

int
pc_limit_capabilities (u64 keep, u32 securebits, struct pc_failure *failure)
{
  word error = drop_bounding (keep);
  if (error < 0)
    return fail (failure, PC_STEP_BOUNDING, error);
  if (securebits != 0)
    {
      error = sys_prctl (PR_SET_SECUREBITS, securebits, 0);
      if (error < 0)
        return fail (failure, PC_STEP_SECUREBITS, error);
    }
  error = set_capabilities (keep);
  if (error < 0)
    return fail (failure, PC_STEP_CAPABILITIES, error);
  return 0;
}

static int
set_user (const struct pc_exec *exec, struct pc_failure *failure)
{
  word error;

  /* setgroups is denied for good where the id map was written without privilege. */
  error = raw2 (__NR_setgroups, exec->groups.size / 4, pc_at (exec, exec->groups));
  if (error < 0 && !(error == -1 && exec->groups.size == 0))
    return fail (failure, PC_STEP_GROUPS, error);
  error = raw3 (__NR_setresgid, exec->gid, exec->gid, exec->gid);
  if (error < 0)
    return fail (failure, PC_STEP_USER, error);
  /* The capabilities that still have to be set or dropped must survive the change of uid. */
  error = sys_prctl (PR_SET_KEEPCAPS, 1, 0);
  if (error < 0)
    return fail (failure, PC_STEP_USER, error);
  error = raw3 (__NR_setresuid, exec->uid, exec->uid, exec->uid);
  if (error < 0)
    return fail (failure, PC_STEP_USER, error);
  return 0;
}

int
pc_apply_landlock (const struct pc_security *security, int base)
{
  struct landlock_ruleset ruleset = {
    .handled_fs = security->landlock_fs,
    .scoped = security->landlock_scoped,
  };
  usize size = security->landlock_abi >= 6 ? 24 : security->landlock_abi >= 4 ? 16 : 8;
  /* The mount below the root, not the root, which may be replaced. */
  cleanup_fd int dev = (int) sys_openat (AT_FDCWD_, "/dev", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  const int below[] = { base, dev };
  const u64 rights[] = { security->landlock_root, security->landlock_dev };

  cleanup_fd int fd = (int) raw3 (__NR_landlock_create_ruleset, &ruleset, size, 0);
  if (fd < 0)
    return fd;
  if (dev < 0)
    return dev;
  for (u32 i = 0; i < COUNT (below); i++)
    {
      struct landlock_beneath rule = { .allowed = rights[i], .parent_fd = below[i] };
      word error = raw4 (__NR_landlock_add_rule, fd, 1, &rule, 0);
      if (error < 0)
        return (int) error;
    }
  return (int) raw2 (__NR_landlock_restrict_self, fd, 0);
}

int
pc_set_stdio (const int fds[3])
{
  for (int i = 0; i < 3; i++)
    {
      int error = pc_move_fd (fds[i], i, 0);
      if (error < 0)
        return error;
    }
  /* Nothing but the three streams may cross, whatever is open by then. */
  return (int) sys_close_range (3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
}

int
pc_close_all_but (const int *kept, u32 count)
{
  u32 from = 3;
  for (;;)
    {
      u32 next = ~0u;
      for (u32 i = 0; i < count; i++)
        if (kept[i] >= (int) from && (u32) kept[i] < next)
          next = (u32) kept[i];
      word error = next == from ? 0 : sys_close_range (from, next == ~0u ? ~0u : next - 1, 0);
      if (error < 0)
        return (int) error;
      if (next == ~0u)
        return 0;
      from = next + 1;
    }
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

/* execvp: a command without a slash is looked up along PATH, EACCES remembered. */
static word
search_and_execute (const char *search, char **argv, char **env)
{
  word result = -2;
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
          word error = raw3 (__NR_execve, path_buffer, argv, env);
          if (error != -2 && error != -20)
            result = error;
          if (error != -2 && error != -20 && error != -13)
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
    return -7;
  for (const char *at = argv[0]; *at != '\0'; at++)
    if (*at == '/')
      return raw3 (__NR_execve, argv[0], argv, env);
  if (argv[0][0] == '\0')
    return -2;
  return search_and_execute (pc_at (exec, exec->search), argv, env);
}

static word
install_filter (const struct pc_security *security, struct pc_ref filter)
{
  struct
  {
    u16 length;
    const void *filter;
  } program = {
    .length = (u16) (filter.size / 8),
    .filter = pc_at (security, filter),
  };
  return raw3 (__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

int
pc_confine_agent (const struct pc_security *security, struct pc_failure *failure)
{
  word error = drop_bounding (security->capabilities);
  if (error < 0)
    return fail (failure, PC_STEP_BOUNDING, error);
  if (security->flags & PC_SECURITY_NO_NEW_PRIVS)
    {
      error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
      if (error < 0)
        return fail (failure, PC_STEP_NO_NEW_PRIVS, error);
    }
  error = security->inherited.size > 0 ? install_filter (security, security->inherited) : 0;
  return error < 0 ? fail (failure, PC_STEP_SECCOMP, error) : 0;
}

/* No magic link leads out: what this process or another holds open is no place to work in (CVE-2024-21626). */
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
  cleanup_fd int fd = (int) raw4 (__NR_openat2, root, path, &how, sizeof how);
  return fd < 0 ? fd : raw1 (__NR_fchdir, fd);
}

/* The filter may refuse the calls by which the working directory is entered, so that comes first, with the
   capabilities that the guest will have. */
static int
filter_with_capabilities (const struct pc_security *security, const struct pc_exec *exec,
                          struct pc_failure *failure)
{
  word error = make_effective (security->capabilities);
  if (error < 0)
    return fail (failure, PC_STEP_CAPABILITIES, error);
  error = enter_workdir (pc_at (exec, exec->workdir));
  if (error < 0)
    return fail (failure, PC_STEP_WORKDIR, error);
  error = make_effective (~0ull);
  if (error < 0)
    return fail (failure, PC_STEP_CAPABILITIES, error);
  error = install_filter (security, security->seccomp);
  return error < 0 ? fail (failure, PC_STEP_SECCOMP, error) : 0;
}

void
pc_become_guest (const struct pc_security *security, const struct pc_exec *exec,
                 struct pc_failure *failure)
{
  u64 unblocked = 0;
  word error = set_rlimits (security, security->rlimits);
  if (error == 0)
    error = set_rlimits (exec, exec->rlimits);
  if (error < 0)
    {
      (void) fail (failure, PC_STEP_RLIMIT, error);
      return;
    }
  raw1 (__NR_umask, exec->umask);
  if (set_user (exec, failure) < 0)
    return;
  error = raw4 (__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &unblocked, 0, 8);
  if (error < 0)
    {
      (void) fail (failure, PC_STEP_SESSION, error);
      return;
    }
  if (exec->uid != 0 && (error = make_effective (~0ull)) < 0)
    {
      (void) fail (failure, PC_STEP_CAPABILITIES, error);
      return;
    }
  /* Without no_new_privs a filter needs CAP_SYS_ADMIN, which is gone one step later. */
  int filter_first = !(security->flags & PC_SECURITY_NO_NEW_PRIVS) && security->seccomp.size > 0;
  if (filter_first && filter_with_capabilities (security, exec, failure) < 0)
    return;
  if (pc_limit_capabilities (security->capabilities, security->securebits, failure) < 0)
    return;
  /* As the new user and without capabilities, so that the directory is one that this user may enter. */
  error = filter_first ? 0 : enter_workdir (pc_at (exec, exec->workdir));
  if (error < 0)
    {
      (void) fail (failure, PC_STEP_WORKDIR, error);
      return;
    }
  if (security->flags & PC_SECURITY_NO_NEW_PRIVS)
    {
      error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
      if (error < 0)
        {
          (void) fail (failure, PC_STEP_NO_NEW_PRIVS, error);
          return;
        }
    }
  if (security->seccomp.size > 0 && !filter_first)
    {
      error = install_filter (security, security->seccomp);
      if (error < 0)
        {
          (void) fail (failure, PC_STEP_SECCOMP, error);
          return;
        }
    }
  (void) fail (failure, PC_STEP_EXEC, execute (exec));
}
