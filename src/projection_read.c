/*
 * projection_read.c
 *		What readers of projections call: the functions in their views,
 *		bookmarks, waiting, freshness, lag, checks.
 *
 * Runs in sessions; reads saga.feed and saga.projection below SQL, and the
 * positions that the projector publishes in shared memory.  Writes nothing.
 */
#include "postgres.h"

#include "access/timeline.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "feed_shared.h"
#include "guc.h"
#include "projection_read.h"
#include "projection_stat.h"
#include "rights.h"

PG_FUNCTION_INFO_V1(saga_filled);
PG_FUNCTION_INFO_V1(saga_serves);
PG_FUNCTION_INFO_V1(saga_bookmark);
PG_FUNCTION_INFO_V1(saga_wait_for_projection);
PG_FUNCTION_INFO_V1(saga_freshness);
PG_FUNCTION_INFO_V1(saga_projection_lag);
PG_FUNCTION_INFO_V1(saga_projection_stand);
PG_FUNCTION_INFO_V1(saga_check_projection);

/* ---- in the views ---- */

/* The last answer: a filter may be asked again for each outer row. */
typedef struct FilledCache
{
	int64		id;
	TransactionId xmin;
	TransactionId xmax;
	uint32		xcnt;
	CommandId	curcid;
	uint64		completed;
	bool		found;
	bool		filled;
} FilledCache;

static bool
filled_now(FunctionCallInfo fcinfo, bool *found)
{
	int64		id = PG_GETARG_INT64(0);
	Snapshot	snapshot = GetActiveSnapshot();
	FilledCache *cache = fcinfo->flinfo->fn_extra;
	bool		strict = false;

	if (cache != NULL && cache->id == id && cache->xmin == snapshot->xmin &&
		cache->xmax == snapshot->xmax && cache->xcnt == snapshot->xcnt &&
		cache->curcid == snapshot->curcid &&
		cache->completed == snapshot->snapXactCompletionCount &&
		cache->completed != 0)
	{
		*found = cache->found;
		return cache->filled;
	}
	if (cache == NULL)
		cache = fcinfo->flinfo->fn_extra =
			MemoryContextAlloc(fcinfo->flinfo->fn_mcxt, sizeof(FilledCache));
	cache->id = id;
	cache->xmin = snapshot->xmin;
	cache->xmax = snapshot->xmax;
	cache->xcnt = snapshot->xcnt;
	cache->curcid = snapshot->curcid;
	cache->completed = snapshot->snapXactCompletionCount;
	cache->filled = false;
	cache->found = saga_projection_filled_under(id, snapshot, &cache->filled, &strict);
	*found = cache->found;

	/* the hook that waits comes with the library, which came with this call */
	if (cache->filled && !saga_preloaded() &&
		(strict || saga_read_consistency != SAGA_READ_EVENTUAL))
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
				 errmsg("projections are not kept up, as saga is not loaded at server start"),
				 errhint("Add saga to shared_preload_libraries in postgresql.conf and restart the server.")));
	return cache->filled;
}

/* saga.filled_(id): does this snapshot see the storage filled? */
Datum
saga_filled(PG_FUNCTION_ARGS)
{
	bool		found;

	PG_RETURN_BOOL(filled_now(fcinfo, &found));
}

/* saga.serves_(id): true, or an error if it does not. */
Datum
saga_serves(PG_FUNCTION_ARGS)
{
	bool		found;

	if (filled_now(fcinfo, &found))
		PG_RETURN_BOOL(true);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the projection with id " INT64_FORMAT " does not exist",
						PG_GETARG_INT64(0)),
				 errhint("Drop the view, or create the projection anew.")));
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("this snapshot is older than the contents of the projection"),
			 errhint("Begin the transaction again.")));
}

/* ---- bookmarks ---- */

static XLogRecPtr
wal_end_or_error(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("recovery is in progress"),
				 errhint("Only the primary knows what was committed before.")));
	return saga_wal_end();
}

/* saga.bookmark(): system identifier, timeline and position of now. */
Datum
saga_bookmark(PG_FUNCTION_ARGS)
{
	XLogRecPtr	end = wal_end_or_error();

	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT ":%u:%X/%X",
											  GetSystemIdentifier(),
											  GetWALInsertionTimeLine(),
											  LSN_FORMAT_ARGS(end))));
}

static XLogRecPtr
parse_bookmark(const char *text)
{
	TimeLineID	current = GetWALInsertionTimeLine();
	unsigned long long system;
	unsigned int timeline;
	unsigned int high;
	unsigned int low;
	int			length = 0;
	XLogRecPtr	position;

	if (sscanf(text, "%20llu:%10u:%8X/%8X%n", &system, &timeline, &high, &low, &length) != 4 ||
		text[length] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid bookmark: \"%s\"", text),
				 errhint("Give what saga.bookmark() returned.")));
	position = ((uint64) high) << 32 | low;
	if (system != GetSystemIdentifier())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the bookmark is of another server"),
				 errhint("A bookmark is of use where it was made, and on its standbys when they have been promoted.")));
	if (timeline != current)
	{
		List	   *history = readTimeLineHistory(current);

		if (!tliInHistory(timeline, history) ||
			position > tliSwitchPoint(timeline, history, NULL))
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
					 errmsg("what was committed before the bookmark is not on this server"),
					 errdetail("The bookmark is of timeline %u, which this server left before that position.",
							   timeline)));
	}
	else if (position > saga_wal_end())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the bookmark lies in the future"),
				 errdetail("The WAL of this server ends at %X/%X.",
						   LSN_FORMAT_ARGS(saga_wal_end()))));
	return position;
}

static TimestampTz
end_of(const Interval *timeout)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
															  TimestampTzGetDatum(now),
															  IntervalPGetDatum(timeout)));

	if (end < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));

	/* a wait in ms is an int further down */
	return Min(end, now + INT64CONST(86400) * 24 * USECS_PER_SEC);
}

/* saga.wait_for_projection(name, at, timeout) -> reached? */
Datum
saga_wait_for_projection(PG_FUNCTION_ARGS)
{
	SagaProjectionRow row;
	XLogRecPtr	until;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name and timeout must not be null")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("saga.wait_for_projection() must be called in READ COMMITTED"),
				 errdetail("This transaction would not see what was waited for.")));
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this transaction has written, and what it wrote is in no projection before it commits"),
				 errhint("Commit, and then call saga.wait_for_projection().")));
	saga_require_preload();
	saga_projection_to_read(text_to_cstring(PG_GETARG_TEXT_PP(0)), &row);
	until = PG_ARGISNULL(1) ? wal_end_or_error() :
		(wal_end_or_error(), parse_bookmark(text_to_cstring(PG_GETARG_TEXT_PP(1))));
	PG_RETURN_BOOL(saga_projection_wait(row.id, until, end_of(PG_GETARG_INTERVAL_P(2))));
}

/* ---- how old ---- */

typedef struct Stand
{
	XLogRecPtr	position;		/* 0: it is the live query, or unknown */
	TimestampTz at;				/* DT_NOBEGIN: unknown */
	bool		stale;
} Stand;

/*
 * When did the projector last find nothing to do?  Zero if none runs; now, if
 * nothing was written since.
 */
static TimestampTz
last_looked(XLogRecPtr *position)
{
	SagaFeedShared *feed = saga_feed_shared(false);

	if (!saga_projector_position(position))
		return 0;
	if (!RecoveryInProgress() && *position >= saga_wal_end())
		return GetCurrentTimestamp();
	return (TimestampTz) pg_atomic_read_u64(&feed->looked_at);
}

static void
stand_of(const SagaProjectionRow *row, Snapshot snapshot, Stand *stand)
{
	SagaFeedStand feed;
	SagaFeedStand latest;
	XLogRecPtr	position;
	TimestampTz looked;

	stand->position = InvalidXLogRecPtr;
	stand->at = DT_NOBEGIN;
	stand->stale = false;
	if (!row->filled)
	{
		stand->at = GetCurrentTimestamp();
		return;
	}
	if (row->own || row->stale)
	{
		stand->position = row->position;
		stand->at = row->at;
	}
	else if (saga_feed_stand(snapshot, &feed))
	{
		stand->position = feed.position;
		stand->at = feed.at;

		/* old, and yet of now, if nothing has changed since */
		looked = last_looked(&position);
		if (looked != 0 && looked > feed.at && !row->stale && saga_feed_stand(NULL, &latest) &&
			latest.batches == feed.batches)
		{
			stand->at = looked;
			stand->position = Max(position, feed.position);
		}
	}
	stand->stale = row->stale;
	if (row->max_lag && stand->at != DT_NOBEGIN)
		stand->stale |= GetCurrentTimestamp() >
			DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(stand->at),
													IntervalPGetDatum(row->max_lag)));
}

static Datum
age_of(const Stand *stand)
{
	return DirectFunctionCall2(timestamp_mi,
							   TimestampTzGetDatum(Max(stand->at, GetCurrentTimestamp())),
							   TimestampTzGetDatum(stand->at));
}

static Datum
return_record(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* The named projection as the active snapshot sees it. */
static void
row_seen(FunctionCallInfo fcinfo, SagaProjectionRow *row)
{
	int64		id;

	saga_projection_to_read(text_to_cstring(PG_GETARG_TEXT_PP(0)), row);
	id = row->id;
	if (!saga_projection_row(id, GetActiveSnapshot(), row))
		row->filled = false;	/* this snapshot sees the live query */
}

/* saga.freshness(name) -> (as_of, age, state, stale, position) */
Datum
saga_freshness(PG_FUNCTION_ARGS)
{
	SagaProjectionRow row;
	Stand		stand;
	Datum		values[5] = {0};
	bool		nulls[5] = {0};

	row_seen(fcinfo, &row);
	stand_of(&row, GetActiveSnapshot(), &stand);
	nulls[0] = nulls[1] = stand.at == DT_NOBEGIN;
	values[0] = TimestampTzGetDatum(stand.at);
	if (!nulls[1])
		values[1] = row.filled ? age_of(&stand) : IntervalPGetDatum(palloc0(sizeof(Interval)));
	values[2] = CStringGetTextDatum(row.state);
	values[3] = BoolGetDatum(stand.stale);
	nulls[4] = stand.position == InvalidXLogRecPtr;
	values[4] = LSNGetDatum(stand.position);
	PG_RETURN_DATUM(return_record(fcinfo, values, nulls));
}

/* Of now: (position, at, bytes behind the end of WAL, age) */
static void
lag_of(const SagaProjectionRow *row, Datum *values, bool *nulls)
{
	Stand		stand;
	XLogRecPtr	end = RecoveryInProgress() ? GetXLogReplayRecPtr(NULL) : saga_wal_end();

	stand_of(row, NULL, &stand);
	nulls[0] = nulls[2] = row->filled && stand.position == InvalidXLogRecPtr;
	nulls[0] |= !row->filled;
	values[0] = LSNGetDatum(stand.position);
	values[2] = Int64GetDatum(!row->filled || end < stand.position ? 0 :
							  (int64) (end - stand.position));
	nulls[1] = nulls[3] = stand.at == DT_NOBEGIN;
	values[1] = TimestampTzGetDatum(stand.at);
	if (!nulls[3])
		values[3] = row->filled ? age_of(&stand) : IntervalPGetDatum(palloc0(sizeof(Interval)));
}

/* saga.projection_lag(name) -> (bytes, transactions, age) */
Datum
saga_projection_lag(PG_FUNCTION_ARGS)
{
	SagaProjectionRow row;
	Datum		lag[4];
	bool		lag_nulls[4];
	Datum		values[3];
	bool		nulls[3];
	XLogRecPtr	position;

	saga_projection_to_read(text_to_cstring(PG_GETARG_TEXT_PP(0)), &row);
	lag_of(&row, lag, lag_nulls);
	values[0] = lag[2];
	nulls[0] = lag_nulls[2];
	nulls[1] = !saga_projector_position(&position);
	values[1] = nulls[1] ? (Datum) 0 :
		Int64GetDatum((int64) pg_atomic_read_u64(&saga_projection_stat(row.id)->waiting));
	values[2] = lag[3];
	nulls[2] = lag_nulls[3];
	PG_RETURN_DATUM(return_record(fcinfo, values, nulls));
}

/*
 * saga.projection_stand_(id) -> (position, as_of, lag_bytes, age): for
 * saga.stat_projections, which decides who sees what.
 */
Datum
saga_projection_stand(PG_FUNCTION_ARGS)
{
	SagaProjectionRow row;
	Datum		values[4] = {0};
	bool		nulls[4] = {true, true, true, true};

	if (saga_projection_row(PG_GETARG_INT64(0), NULL, &row))
		lag_of(&row, values, nulls);
	PG_RETURN_DATUM(return_record(fcinfo, values, nulls));
}

/* ---- checking ---- */

/*
 * saga.check_projection(name) -> (missing, extra, position, as_of).  A session
 * cannot compare exactly: its snapshot is not the one that the contents stand
 * at.  So the projector does it, right after a batch, and answers.
 */
Datum
saga_check_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SagaProjectionRow row;
	SagaCheckAnswer answer;
	Datum		values[4];
	bool		nulls[4] = {0};

	saga_require_preload();
	saga_projection_to_read(name, &row);
	if (!saga_may_change(GetUserId(), row.owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of projection \"%s\"", name)));
	if (!row.filled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" is not filled yet", name),
				 errdetail("Its view runs the query itself.")));
	for (;;)
	{
		saga_projection_require_upkeep(&row);
		if (!saga_check_ask(row.id, &answer))
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many checks are under way"),
					 errhint("Try again when some of them are done.")));
		if (answer.error == NULL)
			break;

		/* it may have been behind the others for a moment */
		if (!saga_projection_row(row.id, NULL, &row))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("projection \"%s\" has been dropped or replaced", name)));
		saga_projection_pause();
	}
	values[0] = Int64GetDatum(answer.missing);
	values[1] = Int64GetDatum(answer.extra);
	values[2] = LSNGetDatum(answer.position);
	values[3] = TimestampTzGetDatum(answer.at);
	PG_RETURN_DATUM(return_record(fcinfo, values, nulls));
}
