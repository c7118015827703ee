/* Sessions of UDP clients, and their ages. */
#include "parts.h"

#include <linux/errno.h>

#define BUCKETS 1024u
#define COMMON_PATIENCE 90
#define NO_SESSION 0u /* places are counted from 1 */

static struct pc_session sessions[PC_SESSIONS_MOST + 1];
static u32 buckets[BUCKETS];
static u32 sessions_end = 1;
static u32 session_count;
static u32 first_free;

/* The sessions of one listener by age. */
struct ages
{
  u32 oldest;
  u32 newest;
  u32 count;
};

static struct ages ages[PC_LISTENERS_MOST]; /* by the place of the listener */
static u32 ages_end;                        /* of those that were ever used */

static u32 *
bucket_of (const struct pc_session_key *key)
{
  const u8 *bytes = (const u8 *) key;
  u32 hash = 2166136261u;
  for (usize i = 0; i < sizeof *key; i++)
    hash = (hash ^ bytes[i]) * 16777619u;
  return &buckets[hash % BUCKETS];
}

static void
unlink_age (struct pc_session *session)
{
  struct ages *of = &ages[session->key.listener];

  if (session->older != NO_SESSION)
    sessions[session->older].newer = session->newer;
  else
    of->oldest = session->newer;
  if (session->newer != NO_SESSION)
    sessions[session->newer].older = session->older;
  else
    of->newest = session->older;
  of->count--;
}

static void
link_newest (struct pc_session *session)
{
  struct ages *of = &ages[session->key.listener];
  u32 place = (u32) (session - sessions);

  session->older = of->newest;
  session->newer = NO_SESSION;
  if (of->newest != NO_SESSION)
    sessions[of->newest].newer = place;
  else
    of->oldest = place;
  of->newest = place;
  of->count++;
  if (session->key.listener >= ages_end)
    ages_end = session->key.listener + 1;
}

void
pc_refresh_session (struct pc_session *session)
{
  session->last_seen = pc_seconds ();
  if (ages[session->key.listener].newest == (u32) (session - sessions))
    return;
  unlink_age (session);
  link_newest (session);
}

static void
end_session (struct pc_session *session)
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

/* End a session of the listener that has the most, so that many clients of one published port cannot take the
   sessions of the others: of those with equally many the one that wants another, or that was silent for longest. */
static void
make_room (const struct pc_listener *listener)
{
  const struct ages *most = &ages[pc_place_of (listener)];

  for (u32 i = 0; i < ages_end; i++)
    {
      const struct ages *one = &ages[i];
      int as_many = one->count == most->count && one->count > 0 && most != &ages[pc_place_of (listener)];
      if (one->count > most->count || (as_many && sessions[one->oldest].last_seen < sessions[most->oldest].last_seen))
        most = one;
    }
  if (most->count > 0)
    end_session (&sessions[most->oldest]);
}

static int
dial (const struct pc_listener *listener)
{
  int fd = pc_dial (listener, SOCK_DGRAM_);
  if (fd == -EMFILE || fd == -ENFILE)
    {
      make_room (listener);
      fd = pc_dial (listener, SOCK_DGRAM_);
    }
  return fd;
}

static struct pc_session *
take_place (const struct pc_listener *listener)
{
  if (first_free == NO_SESSION && sessions_end > PC_SESSIONS_MOST)
    make_room (listener);
  u32 place = first_free != NO_SESSION ? first_free : sessions_end++;
  if (place == first_free)
    first_free = sessions[place].chain;
  return &sessions[place];
}

static struct pc_session *
start_session (const struct pc_listener *listener, const struct pc_session_key *key)
{
  cleanup_fd int fd = dial (listener);
  if (fd < 0)
    return NULL;
  struct pc_session *session = take_place (listener);
  u32 place = (u32) (session - sessions);
  u32 *bucket = bucket_of (key);

  session->key = *key;
  session->used = 1;
  session->last_seen = pc_seconds ();
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

struct pc_session *
pc_find_session (const struct pc_listener *listener, const struct pc_session_key *key)
{
  for (u32 place = *bucket_of (key); place != NO_SESSION; place = sessions[place].chain)
    if (memcmp (&sessions[place].key, key, sizeof *key) == 0)
      return &sessions[place];
  return start_session (listener, key);
}

struct pc_session *
pc_session_at (u32 place, u32 generation)
{
  struct pc_session *session = &sessions[place];
  return session->used && session->generation == generation ? session : NULL;
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
      if (now - sessions[i].last_seen > (patience > 0 ? patience : COMMON_PATIENCE))
        end_session (&sessions[i]);
    }
}
