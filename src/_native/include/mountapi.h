/* The calls of the mount API. */
#ifndef PC_MOUNTAPI_H
#define PC_MOUNTAPI_H

#include "raw.h"

#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>

#define sys_open_tree(dir, path, flags) raw3 (__NR_open_tree, dir, path, flags)
#define sys_move_mount(from, to) raw5 (__NR_move_mount, from, "", to, "", 0x4 | 0x40)
#define sys_fsopen(type) raw2 (__NR_fsopen, type, FSOPEN_CLOEXEC)
#define sys_fsconfig(fd, command, key, value, aux) raw5 (__NR_fsconfig, fd, command, key, value, aux)
#define sys_fspick(dir) raw3 (__NR_fspick, dir, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)
#define sys_fsmount(fd, attributes) raw3 (__NR_fsmount, fd, FSMOUNT_CLOEXEC, attributes)
#define sys_mount_setattr(fd, flags, attr) \
  raw5 (__NR_mount_setattr, fd, "", (flags) | AT_EMPTY_PATH, attr, sizeof (struct mount_attr))
#define sys_openat2(dir, path, how) raw4 (__NR_openat2, dir, path, how, sizeof (struct open_how))

#define CLONE_TREE (OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)

/* Make a detached mount of a new file system with options "key=value,flag".  Its fd or a negative errno. */
int pc_new_filesystem (const char *type, const char *options, usize size, u64 attributes);
/* Make the mount of an fd the root with pivot_root(2), and detach the old root.  0 or a negative errno. */
int pc_pivot (int fd);

#endif
