/* State of a launcher process, which its subjects share. */
#ifndef PC_HELPER_LAUNCHER_H
#define PC_HELPER_LAUNCHER_H

#include "plan.h"
#include "wire.h"

/* A child that was cloned and waits for its sources, or for a plan. */
struct pc_child_handle
{
  i32 pid; /* 0: none */
  int pidfd;
  int sync; /* socket over which the sources, or the plan, are sent */
};

struct pc_launcher
{
  int socket;
  int agent;       /* image of the agent */
  int host_mounts; /* mount namespace in which the paths of an unprivileged caller resolve, or -1 */
  int own_mounts;
  int dev; /* detached /dev template, or -1 when it stays attached at /dev */
  int sys; /* detached /sys template, or -1 when it stays attached at /sys */
  int has_sys;
  int privileged; /* root: each container gets ids of its own */
  struct pc_child_handle spare;
  int old_layers; /* overlay takes no detached mounts here: layers are attached, then named by path */
};

#endif
