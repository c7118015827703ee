/* TCP flows of the relay. */
#include "parts.h"

#include <linux/errno.h>
#include <linux/tcp.h>

#define BOTH (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
#define ACCEPTED_AT_ONCE 32
#define NOWHERE 0xffffffffu

struct flow
{
  struct pc_half half[2]; /* client, upstream */
  u32 listener;           /* the id */
  u32 place;              /* of the listener, for its share */
  u32 generation;
  u32 next; /* that is free, or that has a turn */
  u8 used;
  u8 listed; /* it has a turn */
  u8 connecting;
};

static struct flow flows[PC_FLOWS_MOST];
static u32 flows_end; /* of the places that were ever used */
static u32 flows_used;
static u32 held[PC_LISTENERS_MOST]; /* flows by the place of their listener */
static u32 first_free = NOWHERE;
static u32 first_turn = NOWHERE;
static u32 last_turn = NOWHERE;

/* An fd in reserve.  Without a free fd a client cannot even be accepted to be reset, so this one is closed for it. */
static int reserve = -1;

static void
give_turn (struct flow *flow)
{
  u32 place = (u32) (flow - flows);
  if (flow->listed)
    return;
  flow->listed = 1;
  flow->next = NOWHERE;
  if (first_turn == NOWHERE)
    first_turn = place;
  else
    flows[last_turn].next = place;
  last_turn = place;
}

static void
free_place (struct flow *flow)
{
  flow->next = first_free;
  first_free = (u32) (flow - flows);
}

static struct flow *
take_place (void)
{
  struct flow *flow = NULL;
  if (first_free != NOWHERE)
    {
      flow = &flows[first_free];
      first_free = flow->next;
    }
  else if (flows_end < PC_FLOWS_MOST)
    flow = &flows[flows_end++];
  return flow;
}

/* Let the next close send a reset and discard unsent data. */
static void
prefer_reset (int fd)
{
  i32 linger[2] = { 1, 0 };
  sys_setsockopt (fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
}

static void
end_flow (struct flow *flow, int reset)
{
  for (u32 i = 0; i < 2; i++)
    {
      struct pc_half *half = &flow->half[i];
      if (half->fd >= 0 && reset)
        prefer_reset (half->fd);
      pc_close_fd (&half->fd);
      pc_leave_pipe (half);
    }
  if (flow->used)
    {
      flows_used--;
      held[flow->place]--;
    }
  flow->used = 0;
  flow->generation++;
  if (!flow->listed)
    free_place (flow);
}

static void
set_options (int fd)
{
  i32 one = 1;
  sys_setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  sys_setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* A listener may have as many flows as are free then: half of all for one that takes what it gets, and the
   others always find some. One published port cannot take the relay from the ports of other containers. */
static int
has_share (u32 place)
{
  return held[place] < PC_FLOWS_MOST - flows_used;
}

/* Start a flow for an accepted client, which is closed on failure. */
static void
start_flow (const struct pc_listener *listener, int client)
{
  u32 place = pc_place_of (listener);
  struct flow *flow = has_share (place) ? take_place () : NULL;
  if (flow == NULL)
    {
      prefer_reset (client);
      sys_close (client);
      return;
    }
  flow->half[0] = flow->half[1] = (struct pc_half) { .fd = -1, .pipe = { -1, -1 } };
  flow->half[0].fd = client;
  flow->half[1].fd = pc_dial (listener, SOCK_STREAM_);
  flow->listener = listener->id;
  flow->place = place;
  flow->used = flow->connecting = 1;
  flows_used++;
  held[place]++;
  int error = flow->half[1].fd < 0 ? flow->half[1].fd : 0;
  for (u32 i = 0; error == 0 && i < 2; i++)
    {
      set_options (flow->half[i].fd);
      error = pc_watch (flow->half[i].fd, i == 0 ? PC_END_CLIENT : PC_END_UPSTREAM, (u32) (flow - flows),
                        flow->generation, BOTH);
    }
  if (error < 0)
    end_flow (flow, 1);
}

static int
turn_away (const struct pc_listener *listener)
{
  pc_close_fd (&reserve);
  int fd = (int) sys_accept4 (listener->fd, 0, 0, SOCK_FLAGS_);
  if (fd >= 0)
    {
      prefer_reset (fd);
      sys_close (fd);
    }
  reserve = (int) sys_socket (AF_INET_, SOCK_DGRAM_ | SOCK_FLAGS_, 0);
  return fd;
}

void
pc_tcp_accept (struct pc_listener *listener)
{
  if (reserve < 0)
    reserve = (int) sys_socket (AF_INET_, SOCK_DGRAM_ | SOCK_FLAGS_, 0);
  for (u32 i = 0; i < ACCEPTED_AT_ONCE; i++)
    {
      int fd = (int) sys_accept4 (listener->fd, 0, 0, SOCK_FLAGS_);
      if (fd >= 0)
        {
          start_flow (listener, fd);
          continue;
        }
      int full = fd == -EMFILE || fd == -ENFILE;
      if (full && (fd = turn_away (listener)) >= 0)
        continue;
      if (fd == -EINVAL || fd == -EBADF || fd == -ENOTSOCK || fd == -EOPNOTSUPP)
        pc_close_listener (listener); /* it was shut down, and epoll would report it for ever */
      else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM)
        pc_stall (listener);
      /* Any other error belongs to one connection that has ended. */
      if (fd == -EAGAIN || !listener->used || listener->stalled)
        return;
    }
}

void
pc_tcp_event (enum pc_end end, u32 place, u32 generation, u32 events)
{
  struct flow *flow = &flows[place];
  struct pc_half *half = &flow->half[end == PC_END_UPSTREAM];

  if (!flow->used || flow->generation != generation)
    return;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    half->readable = 1;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
    half->writable = 1;
  if (events & EPOLLERR)
    half->broken = 1;
  give_turn (flow);
}

/* Pass the end of each direction on when its bytes are delivered.  Returns 0 if the flow goes on. */
static int
settle (struct flow *flow)
{
  for (u32 i = 0; i < 2; i++)
    {
      struct pc_half *in = &flow->half[i];
      if (!in->ended || in->waiting > 0)
        continue;
      if (in->broken)
        {
          end_flow (flow, 1);
          return 1;
        }
      if (!in->passed)
        raw2 (__NR_shutdown, flow->half[!i].fd, SHUT_WR_);
      in->passed = 1;
    }
  if (!flow->half[0].passed || !flow->half[1].passed)
    return 0;
  end_flow (flow, 0);
  return 1;
}

/* Return 1 while the upstream connection is not established. */
static int
await_connection (struct flow *flow)
{
  struct pc_half *upstream = &flow->half[1];

  if (flow->half[0].broken || upstream->broken)
    {
      end_flow (flow, 1);
      return 1;
    }
  flow->connecting = !upstream->writable;
  return flow->connecting;
}

static void
take_turn (struct flow *flow)
{
  struct pc_half *client = &flow->half[0];
  struct pc_half *upstream = &flow->half[1];

  if (flow->connecting && await_connection (flow))
    return;
  pc_carry (client, upstream);
  pc_carry (upstream, client);
  if (!settle (flow) && (pc_can_move (client, upstream) || pc_can_move (upstream, client)))
    give_turn (flow);
}

int
pc_tcp_turns (void)
{
  u32 place = first_turn;

  /* A flow that becomes ready again meanwhile has its turn after the next events. */
  first_turn = last_turn = NOWHERE;
  while (place != NOWHERE)
    {
      struct flow *flow = &flows[place];
      place = flow->next;
      flow->listed = 0;
      if (flow->used)
        take_turn (flow);
      else
        free_place (flow);
    }
  return first_turn != NOWHERE;
}

/* Return 1 if the upstream has closed its stream and all of it is delivered.  A container that has exited may
   have sent its last bytes before, which are forwarded here; a truncated stream must end with a reset instead. */
static int
is_whole (struct flow *flow)
{
  struct pc_half *client = &flow->half[0];
  struct pc_half *upstream = &flow->half[1];

  if (flow->connecting)
    return 0;
  upstream->readable = 1;
  pc_carry (upstream, client);
  return upstream->ended && upstream->waiting == 0 && !upstream->broken;
}

void
pc_tcp_drop (u32 id)
{
  for (u32 i = 0; i < flows_end; i++)
    if (flows[i].used && flows[i].listener == id)
      end_flow (&flows[i], !is_whole (&flows[i]));
}
