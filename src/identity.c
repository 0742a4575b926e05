/*
 * identity.c
 *		Who this database is to its participants: identity, epoch, and whether
 *		sagas may run here at all.
 *
 * Called by coordinator.c in a transaction at its start.  Only writer of
 * saga.identity, with saga.take_over().
 *
 * A copy of a database must not act for the original.  The epoch (timeline,
 * counter, nonce) is raised by every new server incarnation before its first
 * call, and participants refuse lower ones: so of a failed-over pair only the
 * later one acts.  A clone or a restored backup would raise it as well; it is
 * told by the host and data directory that changed while saga.host_guard, the
 * administrator's word that both are members of one cluster, is unset or
 * another.  A dump restored into another database is told by the sagas' origin,
 * a random mark that is not dumped with them.  Then sagas are held.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "log.h"
#include "rows.h"
#include "saga.h"
#include "spi_util.h"

#define IDENTITY_QUERY \
	"SELECT coordinator, timeline, counter, nonce, host, host_guard, held," \
	" server_started = pg_catalog.pg_postmaster_start_time() FROM saga.identity"

PG_FUNCTION_INFO_V1(saga_take_over);

/* This host and data directory, as one string. */
static char *
this_host(void)
{
	char		host[256] = "";

	if (gethostname(host, sizeof(host) - 1) != 0)
		host[0] = '\0';
	return psprintf("%s:%s", host, DataDir);
}

static TimeLineID
this_timeline(void)
{
	return GetWALInsertionTimeLine();
}

static char *
text_at(int col)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, col);
}

static void
run(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls, int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (rc != expected)
		elog(ERROR, "could not run \"%s\": %s", sql, SPI_result_code_string(rc));
}

void
saga_log_hold(const char *reason)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];

	values[0] = CStringGetTextDatum(reason);
	run("UPDATE saga.identity SET held = $1", 1, types, values, NULL, SPI_OK_UPDATE);
}

static char *
hold(const char *reason)
{
	saga_log_hold(reason);
	return pstrdup(reason);
}

int32
saga_origin(void)
{
	static Oid	read_from = InvalidOid;
	static int32 origin;
	Oid			relid = saga_relation_oid("identity");

	if (relid != read_from)
	{
		SagaTable  *table;
		Datum		key = BoolGetDatum(true);
		Datum		values[SAGA_MAX_COLUMNS];
		bool		nulls[SAGA_MAX_COLUMNS];
		bool		found;

		PushActiveSnapshot(GetLatestSnapshot());
		table = saga_table_open_oid(relid, AccessShareLock);
		found = saga_table_fetch(table, &key, values, nulls);
		if (found)
			origin = DatumGetInt32(values[2]);
		saga_table_close(table);
		PopActiveSnapshot();
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("saga.identity does not have exactly one row")));
		read_from = relid;
	}
	return origin;
}

/* Live sagas that were started in another database: this one was restored. */
static bool
looks_restored(void)
{
	run("SELECT 1 FROM saga.instance i, saga.identity d"
		" WHERE i.ended_at IS NULL AND i.origin <> d.origin LIMIT 1",
		0, NULL, NULL, NULL, SPI_OK_SELECT);
	return SPI_processed > 0;
}

char *
saga_log_raise_epoch(SagaEpoch *epoch)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	char	   *host = this_host();
	const char *guard = saga_host_guard ? saga_host_guard : "";
	char	   *stored_host;
	char	   *stored_guard;
	char	   *held;
	bool		same_server;
	Oid			types[4] = {INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID};
	Datum		values[4];

	/* a look while held, or by a second coordinator, locks and writes nothing */
	run(IDENTITY_QUERY, 0, NULL, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed == 1 && text_at(7) == NULL &&
		(text_at(8) == NULL || text_at(8)[0] != 't'))
		run(IDENTITY_QUERY " FOR UPDATE", 0, NULL, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("saga.identity does not have exactly one row")));
	memset(epoch, 0, sizeof(*epoch));
	strlcpy(epoch->coordinator, text_at(1), sizeof(epoch->coordinator));
	epoch->timeline = atoi(text_at(2));
	epoch->counter = strtoll(text_at(3), NULL, 10);
	strlcpy(epoch->nonce, text_at(4), sizeof(epoch->nonce));
	stored_host = text_at(5);
	stored_guard = text_at(6);
	held = text_at(7);
	same_server = text_at(8) != NULL && text_at(8)[0] == 't';

	old = MemoryContextSwitchTo(context);
	if (held)
		held = pstrdup(held);
	else if (stored_host && strcmp(stored_host, host) != 0 &&
			 (guard[0] == '\0' || stored_guard == NULL || strcmp(stored_guard, guard) != 0))
		held = hold(psprintf("this server (%s) is not the one that sagas ran on (%s)",
							 host, stored_host));
	else if (looks_restored())
		held = hold(SAGA_HELD_RESTORED);
	MemoryContextSwitchTo(old);
	if (held)
		return held;
	if (same_server)
		return NULL;

	values[0] = Int32GetDatum((int32) this_timeline());
	values[1] = TimestampTzGetDatum(PgStartTime);
	values[2] = CStringGetTextDatum(host);
	values[3] = CStringGetTextDatum(guard);
	run("UPDATE saga.identity SET timeline = $1, counter = counter + 1,"
		" nonce = pg_catalog.gen_random_uuid()::text, server_started = $2,"
		" host = $3, host_guard = $4"
		" RETURNING timeline, counter, nonce", 4, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	epoch->timeline = atoi(text_at(1));
	epoch->counter = strtoll(text_at(2), NULL, 10);
	strlcpy(epoch->nonce, text_at(3), sizeof(epoch->nonce));
	return NULL;
}

/*
 * saga.take_over(reason): the administrator says that this copy is the one
 * that goes on.
 */
Datum
saga_take_over(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];
	char	   *was;

	saga_require_preload();
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only a superuser may let held sagas go on here")));
	SPI_connect();
	run("SELECT held FROM saga.identity FOR UPDATE", 0, NULL, NULL, NULL, SPI_OK_SELECT);
	was = SPI_processed == 1 ? text_at(1) : NULL;
	if (was == NULL)
	{
		SPI_finish();
		PG_RETURN_TEXT_P(cstring_to_text("ignored: sagas are not held"));
	}
	values[0] = CStringGetTextDatum(this_host());
	values[1] = CStringGetTextDatum(saga_host_guard ? saga_host_guard : "");
	/*
	 * The counter must pass whatever participants have seen from the other
	 * copy.  Server starts add one at a time, so the time of day in seconds is
	 * ahead of every counter that was not set here before.
	 */
	run("UPDATE saga.identity SET held = NULL, host = $1, host_guard = $2,"
		" counter = GREATEST(counter + 1, pg_catalog.date_part('epoch', pg_catalog.now())::bigint),"
		" server_started = NULL",
		2, types, values, NULL, SPI_OK_UPDATE);
	run("UPDATE saga.instance i SET origin = d.origin FROM saga.identity d"
		" WHERE i.ended_at IS NULL AND i.origin <> d.origin",
		0, NULL, NULL, NULL, SPI_OK_UPDATE);
	run("UPDATE saga.schedule s SET origin = d.origin FROM saga.identity d"
		" WHERE s.origin <> d.origin",
		0, NULL, NULL, NULL, SPI_OK_UPDATE);
	SPI_finish();
	saga_installed_at_commit();	/* has the workers look again */
	PG_RETURN_TEXT_P(cstring_to_text("queued"));
}
