/* UDP sessions of the relay: each client has an upstream socket of its own. */
#include "parts.h"

#include <linux/errno.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/uio.h>

#define AT_ONCE 32

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

static u8 datagram[65536];

void
pc_udp_prepare (const struct pc_listener *listener)
{
  i32 one = 1;
  int six = listener->family == AF_INET6_;
  int level = six ? IPPROTO_IPV6 : IPPROTO_IP;
  sys_setsockopt (listener->fd, level, six ? IPV6_RECVPKTINFO : IP_PKTINFO, &one, sizeof one);
}

/* Read the address to which a datagram was sent: the answer must come from it. */
static void
read_local (const struct pc_message *message, const struct control *control, u8 local[16])
{
  if (message->control_length < sizeof control->header)
    return;
  if (control->header.level == IPPROTO_IP && control->header.type == IP_PKTINFO)
    memcpy (local, &control->local.four.ipi_spec_dst, sizeof control->local.four.ipi_spec_dst);
  /* A multicast address is no source address. */
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
receive (int fd, struct pc_session_key *key)
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
  word got = sys_recvmsg (fd, &message, MSG_DONTWAIT_);
  if (got >= 0 && key != NULL)
    read_local (&message, &control, key->local);
  return got;
}

/* Forward a datagram.  Without room in the socket it is lost, as UDP permits. */
static void
hand_on (const struct pc_session *session, usize size)
{
  struct iovec part = { .iov_base = datagram, .iov_len = size };
  struct pc_message message = { .parts = &part, .part_count = 1 };
  sys_sendmsg (session->fd, &message, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
}

static void
hand_back (struct pc_session *session, usize size)
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
  sys_sendmsg (listener->fd, &message, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
}

void
pc_udp_take (struct pc_listener *listener)
{
  for (u32 i = 0; i < AT_ONCE; i++)
    {
      struct pc_session_key key;
      memset (&key, 0, sizeof key);
      key.listener = pc_place_of (listener);
      word got = receive (listener->fd, &key);
      if (got == -EAGAIN)
        return;
      struct pc_session *session = got >= 0 ? pc_find_session (listener, &key) : NULL;
      if (session == NULL)
        continue;
      pc_refresh_session (session);
      hand_on (session, (usize) got);
    }
}

void
pc_udp_event (u32 place, u32 generation)
{
  struct pc_session *session = pc_session_at (place, generation);

  if (session == NULL)
    return;
  for (u32 i = 0; i < AT_ONCE; i++)
    {
      word got = receive (session->fd, NULL);
      if (got == -EAGAIN)
        return;
      /* Connection refused: no socket listens in the container yet. */
      if (got < 0)
        continue;
      pc_refresh_session (session);
      hand_back (session, (usize) got);
    }
}
