/*
 * peer.c
 *		What a careful programmer would write by hand instead of a saga of four
 *		steps on four databases: an event loop over libpq in pipeline mode that
 *		sends each UPDATE as a transaction of its own, the next one when the
 *		one before has committed.  No log, no barrier, no undo: the upper bound
 *		that bench/run compares with.
 *
 *	peer SAGAS CONNECTIONS DEPTH IN_FLIGHT CONNINFO...
 *
 * CONNECTIONS to each database, on each of them up to DEPTH statements under
 * way, over all up to IN_FLIGHT sagas begun (0: no limit).  Saga n updates row n
 * of table acct in every database.  Prints sagas/s, p50 and p99 in ms.
 */
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Conn
{
	PGconn	   *pg;
	int			db;
	int			first;			/* ring of the sagas under way */
	int			n;
	int		   *sagas;
} Conn;

/* Sagas that wait for a database, oldest first. */
typedef struct Queue
{
	int			head;
	int			tail;
	int		   *sagas;
} Queue;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
fail(PGconn *pg, const char *what)
{
	fprintf(stderr, "peer: %s: %s", what, PQerrorMessage(pg));
	exit(1);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a,
				y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static void
open_connection(Conn *c, const char *conninfo, int depth)
{
	PGresult   *res;

	c->pg = PQconnectdb(conninfo);
	if (PQstatus(c->pg) != CONNECTION_OK)
		fail(c->pg, "connect");
	res = PQprepare(c->pg, "u", "UPDATE acct SET v = v + 1 WHERE id = $1::bigint", 1, NULL);
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		fail(c->pg, "prepare");
	PQclear(res);
	if (PQsetnonblocking(c->pg, 1) || !PQenterPipelineMode(c->pg))
		fail(c->pg, "pipeline mode");
	c->sagas = calloc(depth, sizeof(int));
}

static void
send_one(Conn *c, int saga, int depth)
{
	char		text[16];
	const char *values[1] = {text};

	snprintf(text, sizeof(text), "%d", saga);
	if (!PQsendQueryPrepared(c->pg, "u", 1, values, NULL, NULL, 0) || !PQpipelineSync(c->pg))
		fail(c->pg, "send");
	c->sagas[(c->first + c->n++) % depth] = saga;
}

/* The saga whose transaction has committed, or -1. */
static int
take_one(Conn *c, int depth)
{
	int			empty = 0;

	while (c->n > 0 && empty < 2 && !PQisBusy(c->pg))
	{
		PGresult   *res = PQgetResult(c->pg);
		ExecStatusType status;
		int			saga;

		if (res == NULL)
		{
			empty++;
			continue;
		}
		empty = 0;
		status = PQresultStatus(res);
		if (status == PGRES_COMMAND_OK && strcmp(PQcmdTuples(res), "1") != 0)
			fail(c->pg, "no such row\n");
		PQclear(res);
		if (status == PGRES_COMMAND_OK)
			continue;
		if (status != PGRES_PIPELINE_SYNC)
			fail(c->pg, "result");
		saga = c->sagas[c->first];
		c->first = (c->first + 1) % depth;
		c->n--;
		return saga;
	}
	return -1;
}

int
main(int argc, char **argv)
{
	int			nsagas = argc > 5 ? atoi(argv[1]) : 0;
	int			per_db = argc > 5 ? atoi(argv[2]) : 0;
	int			depth = argc > 5 ? atoi(argv[3]) : 0;
	int			limit = argc > 5 ? atoi(argv[4]) : 0;
	int			ndbs = argc - 5;
	int			nconns = per_db * ndbs;
	int			begun = 0;
	int			done = 0;
	Conn	   *conns;
	Queue	   *queues;
	struct pollfd *polls;
	double	   *started;
	double		t0;

	if (nsagas < 1 || per_db < 1 || depth < 1)
	{
		fprintf(stderr, "usage: peer SAGAS CONNECTIONS DEPTH IN_FLIGHT CONNINFO...\n");
		return 2;
	}
	if (limit == 0)
		limit = nsagas;
	conns = calloc(nconns, sizeof(Conn));
	polls = calloc(nconns, sizeof(struct pollfd));
	queues = calloc(ndbs, sizeof(Queue));
	started = calloc(nsagas, sizeof(double));
	for (int db = 0; db < ndbs; db++)
		queues[db].sagas = calloc(nsagas, sizeof(int));
	for (int i = 0; i < nconns; i++)
	{
		conns[i].db = i % ndbs;
		open_connection(&conns[i], argv[5 + conns[i].db], depth);
		polls[i].fd = PQsocket(conns[i].pg);
	}

	t0 = now();
	while (done < nsagas)
	{
		while (begun < nsagas && begun - done < limit)
		{
			started[begun] = now();
			queues[0].sagas[queues[0].tail++] = begun++;
		}
		/* round and round, so that no connection gets all the work */
		for (int level = 0; level < depth; level++)
			for (int i = 0; i < nconns; i++)
			{
				Conn	   *c = &conns[i];
				Queue	   *q = &queues[c->db];

				if (c->n == level && q->head < q->tail)
					send_one(c, q->sagas[q->head++], depth);
			}
		for (int i = 0; i < nconns; i++)
		{
			int			unsent = PQflush(conns[i].pg);

			if (unsent < 0)
				fail(conns[i].pg, "flush");
			polls[i].events = (conns[i].n > 0 ? POLLIN : 0) | (unsent ? POLLOUT : 0);
		}
		if (poll(polls, nconns, -1) < 0)
			continue;
		for (int i = 0; i < nconns; i++)
		{
			Conn	   *c = &conns[i];
			int			saga;

			if (!(polls[i].revents & (POLLIN | POLLERR | POLLHUP)))
				continue;
			if (!PQconsumeInput(c->pg))
				fail(c->pg, "receive");
			while ((saga = take_one(c, depth)) >= 0)
			{
				if (c->db + 1 < ndbs)
					queues[c->db + 1].sagas[queues[c->db + 1].tail++] = saga;
				else
				{
					started[saga] = now() - started[saga];
					done++;
				}
			}
		}
	}
	t0 = now() - t0;
	qsort(started, nsagas, sizeof(double), compare);
	printf("%.0f %.2f %.2f\n", nsagas / t0, started[nsagas / 2] * 1e3,
		   started[(int) (nsagas * 0.99)] * 1e3);
	return 0;
}
