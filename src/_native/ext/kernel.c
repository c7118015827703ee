/* System calls that Python's standard library lacks. */
#define _GNU_SOURCE
#include "extension.h"
#include "plan.h"
#include "steps.h"
#include "layer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RECURSIVE 0x8000

static int
result_of (long value)
{
  return value < 0 ? -errno : (int) value;
}

const char *
pcx_step_name (unsigned int step)
{
  static const char *const names[] = {
#define NAME(name, text) text,
    PC_STEPS (NAME)
#undef NAME
  };
  return step < PC_STEP_COUNT ? names[step] : NULL;
}

const char *
pcx_stage_name (unsigned int stage)
{
  static const char *const names[] = {
#define NAME(name, text) text,
    PC_STAGES (NAME)
#undef NAME
  };
  return stage < PC_STAGE_COUNT ? names[stage] : NULL;
}

const char *
pcx_unpack_problem (unsigned int problem)
{
  static const char *const texts[] = {
#define TEXT(name, text) text,
    PC_UNPACK_PROBLEMS (TEXT)
#undef TEXT
  };
  return problem < PC_UNPACK_PROBLEM_COUNT ? texts[problem] : NULL;
}

/* Compare the open files behind two descriptors of other processes, as kcmp(2) does: 0 equal, 1 and 2 an order. */
int
pcx_compare_files (int pid, int fd, int other_pid, int other_fd)
{
  return result_of (syscall (SYS_kcmp, pid, other_pid, KCMP_FILE, (unsigned long) fd, (unsigned long) other_fd));
}

/* Write everything to disk that was written to the file system of this fd. */
int
pcx_syncfs (int fd)
{
  return result_of (syncfs (fd));
}

int
pcx_open_tree (int directory, const char *path, int recursive)
{
  return result_of (syscall (SYS_open_tree, directory, path,
                             OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? RECURSIVE : 0)
                                 | (path[0] == '\0' ? AT_EMPTY_PATH : 0)));
}

int
pcx_clone_mount (const char *type)
{
  int fs = result_of (syscall (SYS_fsopen, type, FSOPEN_CLOEXEC));
  if (fs < 0)
    return fs;
  int result = result_of (syscall (SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
  if (result >= 0)
    result = result_of (syscall (SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0));
  close (fs);
  return result;
}

/* Make a detached mount of the file system on a block device. */
int
pcx_mount_device (const char *type, const char *device)
{
  int fs = result_of (syscall (SYS_fsopen, type, FSOPEN_CLOEXEC));
  if (fs < 0)
    return fs;
  int result = result_of (syscall (SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", device, 0));
  if (result >= 0)
    result = result_of (syscall (SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
  if (result >= 0)
    result = result_of (syscall (SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
  close (fs);
  return result;
}

int
pcx_openat2 (int directory, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode)
{
  struct open_how how = { .flags = flags, .mode = mode, .resolve = resolve };
  return result_of (syscall (SYS_openat2, directory, path, &how, sizeof how));
}

int64_t
pcx_birth (int fd)
{
  struct statx found;
  if (statx (fd, "", AT_EMPTY_PATH, STATX_BTIME, &found) < 0)
    return -errno;
  if (!(found.stx_mask & STATX_BTIME))
    return 0;
  return found.stx_btime.tv_sec * 1000000000 + found.stx_btime.tv_nsec;
}

int
pcx_setns (int fd, int type)
{
  return result_of (setns (fd, type));
}

int
pcx_unshare (int flags)
{
  return result_of (unshare (flags));
}

int
pcx_pivot_root (const char *new_root)
{
  int fd = open (new_root, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int result = fd < 0 ? -errno : result_of (fchdir (fd));
  if (result >= 0)
    result = result_of (syscall (SYS_pivot_root, ".", "."));
  if (result >= 0)
    result = result_of (syscall (SYS_umount2, ".", 2 /* MNT_DETACH */));
  if (result >= 0)
    result = result_of (chdir ("/"));
  if (fd >= 0)
    close (fd);
  return result;
}

int
pcx_landlock_abi (void)
{
  return result_of (syscall (SYS_landlock_create_ruleset, NULL, 0, 1U));
}

int
pcx_plan_check (const char *buffer, size_t size)
{
  return pc_plan_check (buffer, size);
}

int
pcx_exec_check (const char *buffer, size_t size)
{
  return pc_exec_check (buffer, size);
}

int
pcx_security_check (const char *buffer, size_t size)
{
  return pc_security_check (buffer, size);
}

/* Grow the descriptor table.  In a process with threads each growth waits for an RCU grace period, so it is
   grown once, before there are threads. */
int
pcx_grow_descriptor_table (int fd)
{
  int high = fcntl (0, F_DUPFD_CLOEXEC, fd);
  if (high < 0)
    return -errno;
  close (high);
  return 0;
}

int
pcx_write_file (int directory, const char *path, const char *data, size_t size)
{
  int fd = openat (directory, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  ssize_t written = write (fd, data, size);
  int error = errno;
  close (fd);
  return written < 0 ? -error : 0;
}
