/* UDP through the relay: a session for each client, with a socket of its own to the container. */
#include "relay_parts.h"

#include <linux/errno.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/uio.h>

#define BUCKETS 1024u
#define AT_ONCE 32
#define COMMON_PATIENCE 90
#define NOBODY 0u /* places are counted from 1 */
#define MSG_DONTWAIT_ 0x40
#define MSG_NOSIGNAL_ 0x4000

/* A client, and where it thinks the service is. */
struct key
{
  struct pc_address client;
  u8 local[16]; /* nulls when that is not known */
  u32 listener;
};

struct session
{
  struct key key;
  int fd;
  u32 generation;
  u32 used;
  u32 chain; /* the next of its bucket, or the next that is free */
  u32 older;
  u32 newer;
  i64 heard; /* in which second */
};

union local
{
  struct in_pktinfo four;
  struct in6_pktinfo six;
};

struct control
{
  struct pc_control_header header;
  union local local;
  u8 rest[128];
};

static struct session sessions[PC_SESSIONS_MOST + 1];
static u32 buckets[BUCKETS];
static u32 sessions_end = 1;
static u32 session_count;
static u32 first_free;
static u32 oldest;
static u32 newest;
static u8 datagram[65536];

void
pc_udp_prepare (const struct pc_listener *listener)
{
  i32 one = 1;
  int six = listener->family == AF_INET6_;
  raw5 (__NR_setsockopt, listener->fd, six ? IPPROTO_IPV6 : IPPROTO_IP, six ? IPV6_RECVPKTINFO : IP_PKTINFO, &one,
        sizeof one);
}

static u32 *
bucket_of (const struct key *key)
{
  const u8 *bytes = (const u8 *) key;
  u32 hash = 2166136261u;
  for (usize i = 0; i < sizeof *key; i++)
    hash = (hash ^ bytes[i]) * 16777619u;
  return &buckets[hash % BUCKETS];
}

static void
unlink_age (struct session *session)
{
  if (session->older != NOBODY)
    sessions[session->older].newer = session->newer;
  else
    oldest = session->newer;
  if (session->newer != NOBODY)
    sessions[session->newer].older = session->older;
  else
    newest = session->older;
}

static void
link_newest (struct session *session)
{
  u32 place = (u32) (session - sessions);
  session->older = newest;
  session->newer = NOBODY;
  if (newest != NOBODY)
    sessions[newest].newer = place;
  else
    oldest = place;
  newest = place;
}

static void
refresh (struct session *session)
{
  session->heard = pc_seconds ();
  if (newest == (u32) (session - sessions))
    return;
  unlink_age (session);
  link_newest (session);
}

static void
end_session (struct session *session)
{
  u32 place = (u32) (session - sessions);
  u32 *at = bucket_of (&session->key);

  while (*at != place)
    at = &sessions[*at].chain;
  *at = session->chain;
  unlink_age (session);
  pc_close_fd (&session->fd);
  session->used = 0;
  session->generation++;
  session->chain = first_free;
  first_free = place;
  session_count--;
}

static int
dial (const struct pc_listener *listener)
{
  int fd = pc_dial (listener, SOCK_DGRAM_);
  if ((fd == -EMFILE || fd == -ENFILE) && oldest != NOBODY)
    {
      end_session (&sessions[oldest]);
      fd = pc_dial (listener, SOCK_DGRAM_);
    }
  return fd;
}

static struct session *
take_place (void)
{
  if (first_free == NOBODY && sessions_end > PC_SESSIONS_MOST)
    end_session (&sessions[oldest]);
  u32 place = first_free != NOBODY ? first_free : sessions_end++;
  if (place == first_free)
    first_free = sessions[place].chain;
  return &sessions[place];
}

static struct session *
start_session (const struct pc_listener *listener, const struct key *key)
{
  cleanup_fd int fd = dial (listener);
  if (fd < 0)
    return NULL;
  struct session *session = take_place ();
  u32 place = (u32) (session - sessions);
  u32 *bucket = bucket_of (key);

  session->key = *key;
  session->used = 1;
  session->fd = fd;
  session->chain = *bucket;
  *bucket = place;
  link_newest (session);
  session_count++;
  int error = pc_watch (fd, PC_END_SESSION, place, session->generation, EPOLLIN);
  fd = -1;
  if (error < 0)
    end_session (session);
  return error < 0 ? NULL : session;
}

static struct session *
find_session (const struct pc_listener *listener, const struct key *key)
{
  for (u32 place = *bucket_of (key); place != NOBODY; place = sessions[place].chain)
    if (memcmp (&sessions[place].key, key, sizeof *key) == 0)
      return &sessions[place];
  return start_session (listener, key);
}

/* To which address a datagram came: the answer must come from there. */
static void
read_local (const struct pc_message *message, const struct control *control, u8 local[16])
{
  if (message->control_length < sizeof control->header)
    return;
  if (control->header.level == IPPROTO_IP && control->header.type == IP_PKTINFO)
    memcpy (local, &control->local.four.ipi_spec_dst, sizeof control->local.four.ipi_spec_dst);
  /* Nobody is at a group's address. */
  else if (control->header.level == IPPROTO_IPV6 && control->header.type == IPV6_PKTINFO
           && control->local.six.ipi6_addr.in6_u.u6_addr8[0] != 0xff)
    memcpy (local, &control->local.six.ipi6_addr, 16);
}

static int
has_local (const u8 local[16])
{
  for (u32 i = 0; i < 16; i++)
    if (local[i] != 0)
      return 1;
  return 0;
}

static void
write_local (struct pc_message *message, struct control *control, u16 family, const u8 local[16])
{
  usize size = family == AF_INET_ ? sizeof control->local.four : sizeof control->local.six;

  if (!has_local (local))
    return;
  memset (control, 0, sizeof *control);
  control->header.level = family == AF_INET_ ? IPPROTO_IP : IPPROTO_IPV6;
  control->header.type = family == AF_INET_ ? IP_PKTINFO : IPV6_PKTINFO;
  control->header.length = sizeof control->header + size;
  if (family == AF_INET_)
    memcpy (&control->local.four.ipi_spec_dst, local, sizeof control->local.four.ipi_spec_dst);
  else
    memcpy (&control->local.six.ipi6_addr, local, 16);
  message->control = control;
  message->control_length = (control->header.length + 7) & ~(usize) 7;
}

static word
receive (int fd, struct key *key)
{
  struct control control = { .header = { 0 } };
  struct iovec part = { .iov_base = datagram, .iov_len = sizeof datagram };
  struct pc_message message = { .parts = &part, .part_count = 1 };

  if (key != NULL)
    {
      message.name = &key->client;
      message.name_length = sizeof key->client;
      message.control = &control;
      message.control_length = sizeof control;
    }
  word got = raw3 (__NR_recvmsg, fd, &message, MSG_DONTWAIT_);
  if (got >= 0 && key != NULL)
    read_local (&message, &control, key->local);
  return got;
}

/* A datagram for which there is no room just now is lost, as on any way. */
static void
hand_on (const struct session *session, usize size)
{
  struct iovec part = { .iov_base = datagram, .iov_len = size };
  struct pc_message message = { .parts = &part, .part_count = 1 };
  raw3 (__NR_sendmsg, session->fd, &message, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
}

static void
hand_back (struct session *session, usize size)
{
  const struct pc_listener *listener = pc_listener_at (session->key.listener);
  struct control control;
  struct iovec part = { .iov_base = datagram, .iov_len = size };
  struct pc_message message = {
    .name = &session->key.client,
    .name_length = listener->family == AF_INET_ ? 16 : sizeof session->key.client,
    .parts = &part,
    .part_count = 1,
  };

  write_local (&message, &control, listener->family, session->key.local);
  raw3 (__NR_sendmsg, listener->fd, &message, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
}

void
pc_udp_take (struct pc_listener *listener)
{
  for (u32 i = 0; i < AT_ONCE; i++)
    {
      struct key key;
      memset (&key, 0, sizeof key);
      key.listener = pc_place_of (listener);
      word got = receive (listener->fd, &key);
      if (got == -EAGAIN)
        return;
      struct session *session = got >= 0 ? find_session (listener, &key) : NULL;
      if (session == NULL)
        continue;
      refresh (session);
      hand_on (session, (usize) got);
    }
}

void
pc_udp_event (u32 place, u32 generation)
{
  struct session *session = &sessions[place];

  if (!session->used || session->generation != generation)
    return;
  for (u32 i = 0; i < AT_ONCE; i++)
    {
      word got = receive (session->fd, NULL);
      if (got == -EAGAIN)
        return;
      /* Nobody listens in the container: the client may ask again. */
      if (got < 0)
        continue;
      refresh (session);
      hand_back (session, (usize) got);
    }
}

void
pc_udp_drop (u32 listener)
{
  for (u32 i = 1; i < sessions_end; i++)
    if (sessions[i].used && sessions[i].key.listener == listener)
      end_session (&sessions[i]);
}

int
pc_udp_busy (void)
{
  return session_count > 0;
}

void
pc_udp_sweep (void)
{
  i64 now = pc_seconds ();
  for (u32 i = 1; i < sessions_end; i++)
    {
      if (!sessions[i].used)
        continue;
      u32 patience = pc_listener_at (sessions[i].key.listener)->patience;
      if (now - sessions[i].heard > (patience > 0 ? patience : COMMON_PATIENCE))
        end_session (&sessions[i]);
    }
}
