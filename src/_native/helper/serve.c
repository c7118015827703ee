/* Requests to the launcher. */
#include "serve.h"
#include "helper/archive.h"
#include "helper/cleanup.h"
#include "helper/files.h"
#include "helper/netns.h"
#include "helper/relay.h"
#include "helper/root.h"
#include "helper/sandbox.h"
#include "helper/spawn.h"

#include <linux/errno.h>
#include <linux/poll.h>

static u8 buffer[PC_MAX_MESSAGE] __attribute__ ((aligned (16)));

void
pc_answer (struct pc_launcher *launcher, struct pc_record *reply, int pidfd)
{
  int error = pc_send_record (launcher->socket, reply, pidfd);

  if (error < 0 && pidfd >= 0)
    {
      sys_pidfd_send_signal (pidfd, SIGKILL_, 0, 0);
      (void) pc_failed (reply, PC_STEP_LAUNCHER, error, -1);
      error = pc_send_record (launcher->socket, reply, -1);
    }
  if (error < 0)
    {
      pc_end_children ();
      sys_exit (1);
    }
}

static const void *
payload (const struct pc_request *request, struct pc_fds *fds, usize received, usize *size)
{
  *size = request->size;
  if (request->flags & PC_REQUEST_IN_MEMFD)
    return pc_map_sealed (fds, *size);
  return received == sizeof *request + request->size ? buffer + sizeof *request : NULL;
}

/* Find the plan for a spare and run the script after it, which completes the spare's cgroups for this container. */
static const void *
spare_plan (const struct pc_request *request, usize received, struct pc_fds *fds, usize *size)
{
  usize all = received - sizeof *request;
  const u8 *plan = buffer + sizeof *request;

  *size = (usize) request->value;
  if (*size > all || pc_plan_check (plan, *size) < 0
      || pc_run_script ((const char *) plan + *size, all - *size, fds) < 0)
    return NULL;
  return plan;
}

static void
serve_spawn (struct pc_launcher *launcher, const struct pc_request *request, usize received, struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_FAILED, .step = PC_STEP_PLAN, .error = EINVAL };
  int pidfd = -1;
  usize size;
  int spare = request->value > 0;
  const void *plan = spare ? spare_plan (request, received, fds, &size) : payload (request, fds, received, &size);

  if (spare)
    reply.step = PC_STEP_SPARE;
  if (fds->truncated)
    reply.error = EMFILE;
  else if (plan != NULL && pc_plan_check (plan, size) == 0)
    pidfd = pc_spawn (launcher, plan, fds, &reply);
  pc_answer (launcher, &reply, pidfd);
  pc_close_fd (&pidfd);
  if (plan != NULL && (request->flags & PC_REQUEST_IN_MEMFD))
    sys_munmap (plan, size);
}

static void
serve_replace_root (struct pc_launcher *launcher, const struct pc_request *request, usize received,
                    struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_FAILED, .step = PC_STEP_PLAN, .error = EINVAL };
  usize size;
  const void *plan = payload (request, fds, received, &size);

  if (fds->truncated)
    reply.error = EMFILE;
  else if (plan != NULL && pc_plan_check (plan, size) == 0)
    pc_replace_root (launcher, plan, fds, request->value, &reply);
  pc_answer (launcher, &reply, -1);
  if (plan != NULL && (request->flags & PC_REQUEST_IN_MEMFD))
    sys_munmap (plan, size);
}

static void
serve_relay (struct pc_launcher *launcher, const struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_FAILED };
  pc_start_relay (fds, &reply);
  pc_answer (launcher, &reply, -1);
}

static void
serve_sys (struct pc_launcher *launcher, const struct pc_request *request, usize received, const struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_READY };
  int error = received == sizeof *request + request->size && !fds->truncated
                  ? pc_make_sys (launcher, (const char *) buffer + sizeof *request, request->size, fds)
                  : -EINVAL;
  if (error < 0)
    (void) pc_failed (&reply, PC_STEP_LAUNCHER, error, -1);
  pc_answer (launcher, &reply, -1);
}

static void
serve_prepare (struct pc_launcher *launcher, const struct pc_request *request, usize received, struct pc_fds *fds)
{
  const u8 *plan = buffer + sizeof *request;
  usize size = received - sizeof *request;

  if (request->value < 0 || (usize) request->value > size || fds->truncated
      || pc_plan_check (plan, (usize) request->value) < 0
      || pc_run_script ((const char *) plan + request->value, size - (usize) request->value, fds) < 0)
    return;
  pc_prepare_spare (launcher, (const struct pc_plan *) (const void *) plan, fds);
}

static int
wait_for_end (int pidfd)
{
  struct pollfd polled = { .fd = pidfd, .events = POLLIN };
  i64 patience[2] = { 10, 0 };
  word ready = sys_ppoll (&polled, 1, patience, 0, 8);
  return ready < 0 ? (int) ready : ready == 0 ? -ETIMEDOUT : 0;
}

/* Remove everything that was sent, and return the first error. */
static int
remove_all (const struct pc_request *request, usize received, const struct pc_fds *fds)
{
  u32 next = request->flags & PC_REQUEST_AFTER ? 1 : 0;
  usize at = sizeof *request;
  int result = 0;

  if (received >= sizeof buffer || fds->count < next || fds->truncated)
    return fds->truncated ? -EMFILE : -EINVAL;
  buffer[received] = '\0';
  if (next == 1)
    {
      int error = wait_for_end (fds->fd[0]);
      if (error < 0)
        return error;
    }
  for (; next < fds->count; next++)
    {
      if (at >= received)
        return -EINVAL;
      const char *name = (const char *) buffer + at + 1;
      int error = buffer[at] == 'g'   ? pc_remove_group (fds->fd[next], name)
                  : buffer[at] == 't' ? pc_remove_tree (fds->fd[next], name)
                  : buffer[at] == 'k' ? 0
                                      : -EINVAL;
      at += pc_strlen (name) + 2;
      if (result == 0)
        result = error;
    }
  return result;
}

static void
serve_remove (struct pc_launcher *launcher, const struct pc_request *request, usize received, struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_GONE, .value = (i32) request->id };
  reply.error = -remove_all (request, received, fds);
  pc_answer (launcher, &reply, -1);
}

static void
serve_measure (struct pc_launcher *launcher, usize received, const struct pc_fds *fds)
{
  struct pc_record reply = { .kind = PC_RECORD_GONE, .error = EINVAL };
  const struct pc_measure_request *asked = (const void *) buffer;
  usize head = sizeof *asked;
  struct pc_measured found;

  if (received > head && received < sizeof buffer && fds->count == 1)
    {
      buffer[received] = '\0';
      reply.error
          = -pc_measure_tree (fds->fd[0], (const char *) buffer + head, asked->max_bytes, asked->max_inodes, &found);
      reply.cpu_user = found.bytes;
      reply.cpu_system = found.inodes;
    }
  pc_answer (launcher, &reply, -1);
}

/* Unpack or pack, and exit: after it has read untrusted input, the process must not serve another request. */
static void
serve_layer (struct pc_launcher *launcher, const struct pc_request *request, usize received, struct pc_fds *fds)
{
  const void *whole = buffer;
  int joins = fds->count == 3;
  int alone = (fds->count == 2 || joins) && !pc_has_children ();

  /* Without the join this process would have rights over files of the host, so it exits. */
  if (joins && (!alone || pc_join_user (fds->fd[2]) < 0))
    sys_exit (1);
  if (alone && request->kind == PC_REQUEST_UNPACK && received == sizeof (struct pc_unpack_request))
    pc_unpack (launcher->socket, whole, fds->fd[0], fds->fd[1]);
  if (alone && request->kind == PC_REQUEST_PACK && received >= sizeof (struct pc_pack_request)
      && received + 2 <= sizeof buffer)
    {
      buffer[received] = buffer[received + 1] = '\0';
      pc_pack (launcher->socket, whole, fds->fd[0], fds->fd[1]);
    }
  /* The caller waits for a report or for the end of the stream. */
  if (fds->truncated)
    sys_exit (1);
}

static void
serve_network (struct pc_launcher *launcher, usize received, const struct pc_fds *fds)
{
  struct pc_record reply = { .kind = 0 };
  const void *whole = buffer;

  (void) pc_network (launcher->socket, whole, received, fds, &reply);
  pc_answer (launcher, &reply, -1);
}

/* Fds that precede a plan because one message cannot take all of them. */
static struct pc_fds held;

/* Hold fds until the plan arrives.  Those of a request that was broken off are dropped by the next one. */
static void
hold_fds (const struct pc_request *request, struct pc_fds *fds)
{
  if (request->value == 1)
    {
      pc_close_fds (&held);
      held.truncated = 0;
    }
  held.truncated |= fds->truncated;
  for (u32 i = 0; i < fds->count; i++)
    {
      if (held.count == COUNT (held.fd))
        held.truncated = 1;
      else
        held.fd[held.count++] = pc_steal_fd (&fds->fd[i]);
    }
}

static void
append_held (struct pc_fds *fds)
{
  fds->truncated |= held.truncated;
  held.truncated = 0;
  for (u32 i = 0; i < held.count && fds->count < COUNT (fds->fd); i++)
    fds->fd[fds->count++] = pc_steal_fd (&held.fd[i]);
  pc_close_fds (&held);
}

int
pc_serve (struct pc_launcher *launcher)
{
  struct pc_fds fds;
  const struct pc_request *request = (const struct pc_request *) buffer;
  word received = pc_receive (launcher->socket, buffer, sizeof buffer, &fds, 0);

  if (received <= 0)
    return -1;
  if ((usize) received >= sizeof *request)
    {
      if (request->kind == PC_REQUEST_SPAWN)
        {
          append_held (&fds);
          serve_spawn (launcher, request, (usize) received, &fds);
        }
      else if (request->kind == PC_REQUEST_FDS)
        hold_fds (request, &fds);
      else if (request->kind == PC_REQUEST_PREPARE)
        serve_prepare (launcher, request, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_REPLACE_ROOT)
        serve_replace_root (launcher, request, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_SYS)
        serve_sys (launcher, request, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_RELAY)
        serve_relay (launcher, &fds);
      else if (request->kind == PC_REQUEST_REMOVE)
        serve_remove (launcher, request, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_MEASURE)
        serve_measure (launcher, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_NETWORK)
        serve_network (launcher, (usize) received, &fds);
      else if (request->kind == PC_REQUEST_FILES && received == sizeof *request && fds.count == 2
               && !pc_has_children ())
        pc_serve_files (launcher->socket, request, &fds);
      else if (request->kind == PC_REQUEST_UNPACK || request->kind == PC_REQUEST_PACK)
        serve_layer (launcher, request, (usize) received, &fds);
    }
  pc_close_fds (&fds);
  return 0;
}
