/* The ordered controls of a start and of an exec, declared once.
 *
 * The order here is the order in which they happen; Python reads the names
 * through the extension.  A step names what failed in a record.
 */
#ifndef PC_STEPS_H
#define PC_STEPS_H

#define PC_STEPS(X)                \
  X (NONE, "none")                 \
  X (PLAN, "plan")                 \
  X (LAUNCHER, "launcher")         \
  X (SPARE, "spare")               \
  X (CLONE, "clone")               \
  X (CGROUP, "cgroup")             \
  X (JOIN, "join")                 \
  X (SEAL, "seal")                 \
  X (NETWORK, "network")           \
  X (HOSTNAME, "hostname")         \
  X (IDMAP, "id map")              \
  X (SOURCE, "mount source")       \
  X (MOUNT_IDMAP, "mount id map")  \
  X (SYNC, "sync")                 \
  X (IDENTITY, "identity")         \
  X (NAMESPACES, "namespaces")     \
  X (COUNTERS, "counters")         \
  X (UPPER, "upper directory")     \
  X (FILE, "file")                 \
  X (OVERLAY, "overlay")           \
  X (MOUNT, "mount")               \
  X (MASK, "masked path")          \
  X (READONLY, "read-only path")   \
  X (PIVOT, "pivot_root")          \
  X (KEYRING, "session keyring")   \
  X (LANDLOCK, "landlock")         \
  X (AGENT, "agent")               \
  X (STDIO, "stdio")               \
  X (TERMINAL, "terminal")         \
  X (SESSION, "session")           \
  X (RLIMIT, "rlimit")             \
  X (GROUPS, "groups")             \
  X (BOUNDING, "bounding set")     \
  X (SECUREBITS, "securebits")     \
  X (USER, "user")                 \
  X (CAPABILITIES, "capabilities") \
  X (WORKDIR, "chdir")             \
  X (NO_NEW_PRIVS, "no_new_privs") \
  X (SECCOMP, "seccomp")           \
  X (EXEC, "execve")

/* The stages of a helper's own start; a record of PC_STEP_LAUNCHER names the one that failed in `op`. */
#define PC_STAGES(X)                                   \
  X (NONE, "none")                                     \
  X (SIGNALS, "signals")                               \
  X (USER_NAMESPACE, "user namespace")                 \
  X (SUB_ID_MAPS, "id maps of sub-ids")                \
  X (SINGLE_ID_MAP, "id map of one id")                \
  X (MOUNT_NAMESPACE, "mount namespace")               \
  X (PROPAGATION, "mount propagation")                 \
  X (HOST_MOUNTS, "view of the host's mounts")         \
  X (SECOND_MOUNT_NAMESPACE, "second mount namespace") \
  X (SMALL_ROOT, "small root")                         \
  X (OWN_MOUNTS, "view of its own mounts")             \
  X (NETWORK_NAMESPACE, "network namespace")

enum pc_stage
{
#define PC_STAGE_ENUM(name, text) PC_STAGE_##name,
  PC_STAGES (PC_STAGE_ENUM)
#undef PC_STAGE_ENUM
      PC_STAGE_COUNT
};

enum pc_step
{
#define PC_STEP_ENUM(name, text) PC_STEP_##name,
  PC_STEPS (PC_STEP_ENUM)
#undef PC_STEP_ENUM
      PC_STEP_COUNT
};

#endif
