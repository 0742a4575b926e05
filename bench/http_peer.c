/*
 * http_peer.c
 *		A load generator: POST requests over so many kept connections, one
 *		after another on each, like those of a saga's steps.
 *
 *	http_peer PORT CONNECTIONS SECONDS
 *
 * Prints requests per second, and the 50th and 99th percentile of their time
 * in ms.  To compare with: no log, no retry, no parsing but of lengths.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct Connection
{
	int			fd;
	double		sent;
	size_t		have;
	char		answer[4096];
} Connection;

static char request[1024];
static size_t request_size;
static float *times;
static size_t ntimes = 0,
			maxtimes = 0;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static void
send_request(Connection *c)
{
	c->sent = now();
	c->have = 0;
	/* it is small: a fresh buffer takes all of it */
	if (write(c->fd, request, request_size) != (ssize_t) request_size)
		die("write");
}

/* Is the answer whole? */
static int
complete(Connection *c)
{
	char	   *end,
			   *length;

	c->answer[c->have] = '\0';
	end = strstr(c->answer, "\r\n\r\n");
	length = strcasestr(c->answer, "Content-Length:");
	return end && length &&
		c->have >= (size_t) (end + 4 - c->answer) + strtoul(length + 15, NULL, 10);
}

static void
note(double seconds)
{
	if (ntimes == maxtimes)
	{
		maxtimes = maxtimes ? maxtimes * 2 : 65536;
		times = realloc(times, maxtimes * sizeof(float));
		if (times == NULL)
			die("realloc");
	}
	times[ntimes++] = (float) (seconds * 1000);
}

static int
compare(const void *a, const void *b)
{
	float		x = *(const float *) a,
				y = *(const float *) b;

	return x < y ? -1 : x > y;
}

int
main(int argc, char **argv)
{
	static const char body[] = "{\"order\": 123456, \"to\": \"somebody@example.com\"}";
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct epoll_event events[256];
	struct rlimit limit;
	int			port = argc > 3 ? atoi(argv[1]) : 0;
	int			n = argc > 3 ? atoi(argv[2]) : 0;
	double		seconds = argc > 3 ? atof(argv[3]) : 0,
				began,
				ended;
	Connection *connections;
	int			ep = epoll_create1(0);

	if (port <= 0 || n <= 0 || seconds <= 0)
	{
		fprintf(stderr, "usage: http_peer PORT CONNECTIONS SECONDS\n");
		return 2;
	}
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	request_size = snprintf(request, sizeof(request),
							"POST /step HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json\r\n"
							"User-Agent: saga/1.0\r\nContent-Type: application/json\r\n"
							"Idempotency-Key: 01a20aa9-ce95-766e-b5cf-dd315db37946/step/action\r\n"
							"traceparent: 00-01a20aa9ce95766eb5cfdd315db37946-900b5270ccd6e49b-01\r\n"
							"Saga-Id: 01a20aa9-ce95-766e-b5cf-dd315db37946\r\nSaga-Name: bench\r\nSaga-Step: step\r\n"
							"Saga-Attempt: 1\r\nContent-Length: %zu\r\n\r\n%s",
							port, strlen(body), body);
	to.sin_port = htons(port);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	connections = calloc(n, sizeof(Connection));
	for (int i = 0; i < n; i++)
	{
		Connection *c = &connections[i];
		struct epoll_event event = {.events = EPOLLIN,.data.ptr = c};
		int			one = 1;

		c->fd = socket(AF_INET, SOCK_STREAM, 0);
		if (c->fd < 0 || connect(c->fd, (struct sockaddr *) &to, sizeof(to)) < 0)
			die("connect");
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event);
	}
	began = now();
	for (int i = 0; i < n; i++)
		send_request(&connections[i]);
	do
	{
		int			ready = epoll_wait(ep, events, 256, 1000);

		ended = now();
		for (int i = 0; i < ready; i++)
		{
			Connection *c = events[i].data.ptr;
			ssize_t		got = read(c->fd, c->answer + c->have,
								   sizeof(c->answer) - 1 - c->have);

			if (got < 0 && errno == EAGAIN)
				continue;
			if (got <= 0)
				die("read");
			c->have += got;
			if (!complete(c))
				continue;
			note(now() - c->sent);
			send_request(c);
		}
	} while (ended - began < seconds);
	qsort(times, ntimes, sizeof(float), compare);
	printf("%.0f %.1f %.1f\n", ntimes / (ended - began), times[ntimes / 2],
		   times[ntimes * 99 / 100]);
	return 0;
}
