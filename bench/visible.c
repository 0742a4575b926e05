/*
 * visible.c
 *		From commit to visible: orders at a steady rate, each looked for in a
 *		projection until it is there.
 *
 *	visible CONNINFO ORDERS RATE FIRST
 *
 * One connection writes, the other polls; prints p50 p99 max in ms, from the
 * return of COMMIT to the first read that shows the order.  Orders are numbered
 * from FIRST, and must be new.
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int
by_value(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

static PGresult *
must(PGconn *conn, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "visible: %s", PQerrorMessage(conn));
		exit(1);
	}
	return result;
}

int
main(int argc, char **argv)
{
	int			n;
	double		period;
	double	   *ms;
	double		next;
	PGconn	   *writer;
	PGconn	   *reader;

	if (argc != 5)
		return 2;
	n = atoi(argv[2]);
	period = 1000.0 / atof(argv[3]);
	ms = malloc(sizeof(double) * n);
	writer = PQconnectdb(argv[1]);
	reader = PQconnectdb(argv[1]);
	if (PQstatus(writer) != CONNECTION_OK || PQstatus(reader) != CONNECTION_OK)
	{
		fprintf(stderr, "visible: %s%s", PQerrorMessage(writer), PQerrorMessage(reader));
		return 1;
	}
	PQclear(must(writer, PQprepare(writer, "w",
								   "WITH o AS (INSERT INTO shop.orders (customer_id, ordered_on, month) "
								   "VALUES (1 + $1::int % 10000, '2030-01-01', 900000 + $1::int) RETURNING order_id) "
								   "INSERT INTO shop.order_item SELECT order_id, l, 1 + ($1::int + l) % 1000, 1 FROM o, generate_series(1, 5) l",
								   0, NULL)));
	PQclear(must(reader, PQprepare(reader, "r",
								   "SELECT units FROM shop.kept WHERE month = 900000 + $1::int AND customer_id = 1 + $1::int % 10000",
								   0, NULL)));
	next = now();
	for (int i = 0; i < n; i++)
	{
		char		number[16];
		const char *args[1] = {number};
		double		committed;
		int			found = 0;

		while (now() < next)
		{
			struct timespec t = {0, 100000};

			nanosleep(&t, NULL);
		}
		next = next + period > now() ? next + period : now();
		snprintf(number, sizeof(number), "%d", atoi(argv[4]) + i);
		PQclear(must(writer, PQexecPrepared(writer, "w", 1, args, NULL, NULL, 0)));
		committed = now();
		while (!found)
		{
			PGresult   *r = must(reader, PQexecPrepared(reader, "r", 1, args, NULL, NULL, 0));

			found = PQntuples(r) == 1 && atoi(PQgetvalue(r, 0, 0)) == 5;
			PQclear(r);
			if (now() - committed > 60000)
			{
				fprintf(stderr, "visible: an order did not come within a minute\n");
				return 1;
			}
		}
		ms[i] = now() - committed;
	}
	qsort(ms, n, sizeof(double), by_value);
	printf("%.2f %.2f %.2f\n", ms[n / 2], ms[(int) (n * 0.99)], ms[n - 1]);
	return 0;
}
