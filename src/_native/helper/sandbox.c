/* Sandbox of helper processes: one directory as the root, few fds, few capabilities, Landlock, a filter of system
   calls. */
#include "helper/sandbox.h"
#include "controls.h"

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>

#define BIT(capability) (1ull << (capability))
#define TO_WRITE                                                                                    \
  (BIT (CAP_CHOWN) | BIT (CAP_DAC_OVERRIDE) | BIT (CAP_FOWNER) | BIT (CAP_FSETID) | BIT (CAP_MKNOD) \
   | BIT (CAP_SETFCAP))

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
#else
#define OWN_ARCH AUDIT_ARCH_AARCH64
#endif

static const u16 layer_calls[] = {
  __NR_close,      __NR_exit_group, __NR_fchdir,       __NR_fchmod,    __NR_fchmodat, __NR_fchownat,
  __NR_fgetxattr,  __NR_flistxattr, __NR_fremovexattr, __NR_fsetxattr, __NR_fstatfs,  __NR_ftruncate,
  __NR_getdents64, __NR_linkat,     __NR_lseek,        __NR_lsetxattr, __NR_mkdirat,  __NR_mknodat,
  __NR_mmap,       __NR_mremap,     __NR_munmap,       __NR_openat,    __NR_openat2,  __NR_read,
  __NR_readlinkat, __NR_recvmsg,    __NR_renameat2,    __NR_sendmsg,   __NR_statx,    __NR_symlinkat,
  __NR_unlinkat,   __NR_utimensat,  __NR_write,
};

static const u16 server_calls[] = {
  NR_FCHMODAT2,  __NR_close,    __NR_exit_group, __NR_fchmod,  __NR_fchownat,  __NR_fstatfs,   __NR_ftruncate,
  __NR_linkat,   __NR_mkdirat,  __NR_openat,     __NR_openat2, __NR_recvmsg,   __NR_renameat2, __NR_sendmsg,
  __NR_setfsgid, __NR_setfsuid, __NR_setgroups,  __NR_statx,   __NR_symlinkat, __NR_unlinkat,  __NR_utimensat,
};

#define CALLS_MOST COUNT (layer_calls)

word
pc_filter_calls (const u16 *calls, u32 count)
{
  struct sock_filter filter[CALLS_MOST + 6];
  u32 n = 0;

  filter[n++] = (struct sock_filter) BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, arch));
  filter[n++] = (struct sock_filter) BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0);
  filter[n++] = (struct sock_filter) BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  filter[n++] = (struct sock_filter) BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, nr));
  for (u32 i = 0; i < count; i++)
    filter[n++] = (struct sock_filter) BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, calls[i], (u8) (count - i), 0);
  filter[n++] = (struct sock_filter) BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  filter[n++] = (struct sock_filter) BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  return pc_install_filter (filter, n);
}

#define LANDLOCK_RIGHTS 0x7fffu /* of ABI 3: all of files but what later kernels add */
#define LANDLOCK_EXECUTE 1u
#define LANDLOCK_READ 0xcu /* files and directories */
#define LANDLOCK_READ_DIR 8u

static word
lock_to_root (u64 handled, u64 allowed)
{
  struct pc_ruleset ruleset = { .handled_fs = handled };
  cleanup_fd int root = (int) sys_openat (AT_FDCWD_, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);

  return pc_restrict_to (&ruleset, sizeof ruleset.handled_fs, &root, &allowed, 1);
}

/* Apply every restriction but the filter, which comes last. */
static word
enclose (int top, const int *kept, u32 count, u64 capabilities)
{
  struct pc_failure failure = { 0 };
  u64 none[2] = { 0, 0 };
  word error = pc_close_all_but (kept, count);

  if (error == 0)
    error = sys_fchdir (top);
  if (error == 0)
    error = sys_chroot (".");
  if (error == 0)
    error = sys_chdir ("/");
  if (error == 0)
    error = sys_prlimit64 (0, RLIMIT_CORE_, none, 0);
  if (error == 0)
    error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
  if (error == 0 && pc_limit_capabilities (capabilities, 0, &failure) < 0)
    error = -failure.error;
  return error;
}

word
pc_confine_to (int top, int socket, int stream, int writes, int landlock)
{
  int kept[] = { socket, top, stream };
  /* The fds of the lower layers arrive later, so a writer keeps the right to read. */
  u64 handled = writes ? LANDLOCK_RIGHTS & ~LANDLOCK_READ : LANDLOCK_RIGHTS;
  u64 allowed = writes ? handled & ~(u64) LANDLOCK_EXECUTE : LANDLOCK_READ;
  u64 capabilities = writes == PC_WRITE_AS_USER ? 0 : writes ? TO_WRITE : BIT (CAP_DAC_READ_SEARCH);
  word error = enclose (top, kept, COUNT (kept), capabilities);

  if (error == 0 && landlock)
    error = lock_to_root (handled, allowed);
  sys_umask (0);
  return error < 0 ? error : pc_filter_calls (layer_calls, COUNT (layer_calls));
}

word
pc_confine_server (int root, int socket, int landlock)
{
  int kept[] = { socket, root };
  u64 capabilities = BIT (CAP_CHOWN) | BIT (CAP_DAC_OVERRIDE) | BIT (CAP_FOWNER) | BIT (CAP_FSETID) | BIT (CAP_SETUID)
                     | BIT (CAP_SETGID);
  word error = enclose (root, kept, COUNT (kept), capabilities);

  if (error == 0 && landlock)
    error = lock_to_root (LANDLOCK_RIGHTS, LANDLOCK_RIGHTS & ~(u64) LANDLOCK_EXECUTE);
  sys_umask (022);
  return error < 0 ? error : pc_filter_calls (server_calls, COUNT (server_calls));
}

word
pc_join_user (int pidfd)
{
  word error = sys_setns (pidfd, CLONE_NEWUSER);

  /* setgroups stays denied where the id map was written without privilege; the guest keeps these groups too. */
  if (error == 0 && (error = sys_setgroups (0, 0)) == -EPERM)
    error = 0;
  if (error == 0)
    error = sys_setresgid (0, 0, 0);
  if (error == 0)
    error = sys_setresuid (0, 0, 0);
  if (error == 0)
    error = sys_prctl (PR_SET_DUMPABLE, 0, 0);
  return error;
}

int
pc_is_of_kernel (int fd)
{
  static const u32 kinds[] = {
    0x9fa0 /* proc */,        0x62656572 /* sysfs */,    0x27e0eb /* cgroup */,       0x63677270 /* cgroup2 */,
    0x64626720 /* debugfs */, 0x74726163 /* tracefs */,  0x73636673 /* securityfs */, 0xcafe4a11 /* bpf */,
    0x6165676c /* pstore */,  0x19800202 /* mqueue */,   0x1cd1 /* devpts */,         0x42494e4d /* binfmt_misc */,
    0x6e736673 /* nsfs */,    0x62656570 /* configfs */, 0xde5e81e4 /* efivarfs */,
  };
  i64 found[15] = { 0 };

  /* A file system that cannot be identified is not one of the guest's. */
  if (sys_fstatfs (fd, found) < 0)
    return 1;
  for (u32 i = 0; i < COUNT (kinds); i++)
    if ((u32) found[0] == kinds[i])
      return 1;
  return 0;
}

/* Change the ids of file access only: setfsuid(2) also drops the capabilities of root over files, and restores
   them. */
word
pc_act_as (u32 uid, u32 gid, u32 count, const u32 *groups)
{
  word error = sys_setgroups (count, groups);

  /* Denied for good where the id map was written without privilege: then there is one user. */
  if (error < 0 && !(error == -EPERM && count == 0))
    return error;
  sys_setfsgid (gid);
  sys_setfsuid (uid);
  /* Neither call reports a failure, but both return the id in force, also for an id that is invalid. */
  return (u32) sys_setfsgid (0xffffffffu) == gid && (u32) sys_setfsuid (0xffffffffu) == uid ? 0 : -EINVAL;
}
