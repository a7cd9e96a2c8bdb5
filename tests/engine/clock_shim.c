/* LD_PRELOAD shim: the wall clock is behind by the number of seconds in the file $KDEP_CLOCK.
 *
 * Only CLOCK_REALTIME, time() and gettimeofday() are changed: the monotonic clock and sleeps are the
 * kernel's, as when an administrator or NTP steps the clock.
 * cc -shared -fPIC -O1 -o clock_shim.so clock_shim.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long seconds_behind(void) {
  char text[32] = {0};
  const char *path = getenv("KDEP_CLOCK");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return 0;
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  return size > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  static int (*kernel)(clockid_t, struct timespec *);
  if (!kernel) *(void **)&kernel = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = kernel(id, now);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec -= seconds_behind();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec t;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &t);
  now->tv_sec = t.tv_sec;
  now->tv_usec = t.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *out) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  if (out) *out = t.tv_sec;
  return t.tv_sec;
}
