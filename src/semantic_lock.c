/*
 * semantic_lock.c
 *		saga.semantic_lock(): a row that says "a saga is at this", from the
 *		step that takes it until the saga ends.
 *
 * Called in local actions, by executor.c after one that must wait, and by
 * isolation.c when sagas end.  Owns saga.semantic_lock and
 * saga.semantic_lock_waiter; wakes a saga by a row in saga.inbox.
 *
 * Nothing blocks.  An action that finds the lock held by another saga is
 * rolled back, stands in the queue (a row) and is answered as transient; it
 * eats no attempt.  Whoever ends hands the lock to the first in the queue in
 * the same transaction, so that nobody overtakes, and wakes it.
 *
 * Rows of one lock are read and changed under a heavyweight lock of its own
 * (the tag), held to the end of a short transaction: its user never waits for
 * it for long, and goes on without when it does not get it.  What is then
 * missed (a wake-up, a circle) is seen at the step's own next attempt.
 *
 * Sagas that wait for each other in a circle are found when one begins to
 * wait, and at each further attempt: the youngest of them is declined.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "isolation.h"
#include "saga.h"
#include "semantic_lock.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_semantic_lock);
PG_FUNCTION_INFO_V1(saga_semantic_unlock);

/* A value of field4 that SQL cannot produce (1 and 2 are its own). */
#define TAG_CLASS		7
#define TAG_TRIES		6
#define TAG_PAUSE_US	500

/*
 * Attempts of its own that a waiting step makes: soon when its place in the
 * queue was taken without the tag, else as a net under the wake-up.
 */
#define SOON_MS			1000
#define FIRST_RETRY_MS	10000
#define LAST_RETRY_MS	60000

/* What the action that has just failed waits for. */
typedef struct Wanted
{
	bool		set;
	Oid			source;
	char	   *key;			/* in TopMemoryContext, like the next */
	char	   *why;
	int64		timeout_us;		/* -1: none */
} Wanted;

static Wanted wanted;

bool
saga_local_waits(void)
{
	return wanted.set;
}

void
saga_local_reset(void)
{
	saga_local_action = NULL;
	if (wanted.set)
	{
		pfree(wanted.key);
		pfree(wanted.why);
	}
	memset(&wanted, 0, sizeof(wanted));
}

static bool
take_tag(Oid source, const char *key)
{
	LOCKTAG		tag;
	uint64		hash = hash_bytes_extended((const unsigned char *) key, strlen(key), source);

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, TAG_CLASS);
	for (int i = 0; i < TAG_TRIES; i++)
	{
		if (LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
			return true;
		pg_usleep(TAG_PAUSE_US);
	}
	return false;
}

static char *
lock_name(Oid source, const char *key)
{
	char	   *table = get_rel_name(source);

	return psprintf("\"%s\" of \"%s\"", key, table ? table : "?");
}

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* ------------------------------------------------------------ the rows */

static pg_uuid_t *
first_uuid(void)
{
	bool		isnull;
	Datum		value;
	pg_uuid_t  *id;

	if (SPI_processed == 0)
		return NULL;
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	id = SPI_palloc(sizeof(pg_uuid_t));
	memcpy(id, DatumGetUUIDP(value), sizeof(pg_uuid_t));
	return id;
}

/* A saga that has ended holds nothing, whatever a row says. */
static pg_uuid_t *
holder_of(Oid source, const char *key, const pg_uuid_t *self)
{
	static SagaOwnQuery query = {
		NULL,
		"SELECT l.saga FROM saga.semantic_lock l WHERE l.source = $1 AND l.key = $2"
		" AND (l.saga = $3 OR EXISTS (SELECT FROM saga.instance i"
		" WHERE i.id = l.saga AND i.ended_at IS NULL))",
		3, {OIDOID, TEXTOID, UUIDOID}
	};
	Datum		values[3] = {ObjectIdGetDatum(source), CStringGetTextDatum(key), UUIDPGetDatum(self)};

	saga_own_query(&query, values, NULL);
	return first_uuid();
}

/* The first that waits and still goes forward, other than these. */
static pg_uuid_t *
first_waiter(Oid source, const char *key, Datum but)
{
	static SagaOwnQuery query = {
		NULL,
		"SELECT w.saga FROM saga.semantic_lock_waiter w JOIN saga.instance i ON i.id = w.saga"
		" WHERE w.source = $1 AND w.key = $2 AND i.direction = 'forward' AND i.ended_at IS NULL"
		" AND w.saga <> ALL ($3) ORDER BY w.place LIMIT 1",
		3, {OIDOID, TEXTOID, UUIDARRAYOID}
	};
	Datum		values[3] = {ObjectIdGetDatum(source), CStringGetTextDatum(key), but};

	saga_own_query(&query, values, NULL);
	return first_uuid();
}

static Datum
one_id(const pg_uuid_t *id)
{
	Datum		value = UUIDPGetDatum(id);

	return PointerGetDatum(construct_array(&value, 1, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/* At commit, have these steps of a saga tried again. */
static void
wake_steps(const pg_uuid_t *saga, ArrayType *steps, const char *note)
{
	static SagaOwnQuery query = {
		NULL,
		"INSERT INTO saga.inbox (saga_id, bucket, verb, step, actor, note)"
		" SELECT $1, $2, 'retry_step', '#' OPERATOR(pg_catalog.||) s, 'saga', $4"
		" FROM pg_catalog.unnest($3) s RETURNING id",
		4, {UUIDOID, INT2OID, INT4ARRAYOID, TEXTOID}
	};
	Datum		values[4];
	uint64		n;

	values[0] = UUIDPGetDatum(saga);
	values[1] = Int16GetDatum(saga_bucket(saga));
	values[2] = PointerGetDatum(steps);
	values[3] = CStringGetTextDatum(note);
	n = saga_own_query(&query, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		id = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		saga_wake_at_commit(saga, DatumGetInt64(id), 0);
	}
}

/* The steps of a saga that wait for this lock leave the queue. */
static ArrayType *
leave_queue(Oid source, const char *key, const pg_uuid_t *saga)
{
	static SagaOwnQuery query = {
		NULL,
		"WITH gone AS (DELETE FROM saga.semantic_lock_waiter"
		" WHERE source = $1 AND key = $2 AND saga = $3 RETURNING step)"
		" SELECT coalesce(pg_catalog.array_agg(step), '{}') FROM gone",
		3, {OIDOID, TEXTOID, UUIDOID}
	};
	Datum		values[3] = {ObjectIdGetDatum(source), CStringGetTextDatum(key), UUIDPGetDatum(saga)};
	bool		isnull;

	saga_own_query(&query, values, NULL);
	return DatumGetArrayTypePCopy(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1, &isnull));
}

static void
set_holder(Oid source, const char *key, const pg_uuid_t *saga)
{
	static SagaOwnQuery query = {
		NULL,
		"INSERT INTO saga.semantic_lock (source, key, saga) VALUES ($1, $2, $3)"
		" ON CONFLICT (source, key) DO UPDATE SET saga = excluded.saga, since = excluded.since",
		3, {OIDOID, TEXTOID, UUIDOID}
	};
	Datum		values[3] = {ObjectIdGetDatum(source), CStringGetTextDatum(key), UUIDPGetDatum(saga)};

	saga_own_query(&query, values, NULL);
}

static void
hand_over(Oid source, const char *key, const pg_uuid_t *saga)
{
	set_holder(source, key, saga);
	wake_steps(saga, leave_queue(source, key, saga),
			   psprintf("the semantic lock on %s is free", lock_name(source, key)));
}

/* To the first that waits and is none of these, or nobody's. */
static void
release_one(Oid source, const char *key, Datum but)
{
	static SagaOwnQuery query = {
		NULL,
		"DELETE FROM saga.semantic_lock WHERE source = $1 AND key = $2",
		2, {OIDOID, TEXTOID}
	};
	Datum		values[2] = {ObjectIdGetDatum(source), CStringGetTextDatum(key)};
	pg_uuid_t  *next;

	(void) take_tag(source, key);
	next = first_waiter(source, key, but);
	if (next)
		hand_over(source, key, next);
	else
		saga_own_query(&query, values, NULL);
}

void
saga_locks_release(Datum ids)
{
	static SagaOwnQuery held = {
		NULL,
		"SELECT source, key FROM saga.semantic_lock WHERE saga = ANY ($1) ORDER BY source, key",
		1, {UUIDARRAYOID}
	};
	static SagaOwnQuery waiting = {
		NULL,
		"DELETE FROM saga.semantic_lock_waiter WHERE saga = ANY ($1)",
		1, {UUIDARRAYOID}
	};
	uint64		n = saga_own_query(&held, &ids, NULL);
	SPITupleTable *rows = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			source = DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc, 1, &isnull));

		release_one(source, SPI_getvalue(rows->vals[i], rows->tupdesc, 2), ids);
	}
	saga_own_query(&waiting, &ids, NULL);
}

/* -------------------------------------------------------------- taking */

static void
check_source(Oid source, const char *key)
{
	if (get_rel_name(source) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", source)));
	if (pg_class_aclmask(source, GetUserId(), ACL_SELECT | ACL_INSERT | ACL_UPDATE | ACL_DELETE,
						 ACLMASK_ANY) == 0)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(source));
	if (strlen(key) > 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the key of a semantic lock has at most 1000 bytes")));
}

static void pg_attribute_noreturn()
wait_for(Oid source, const char *key, int64 timeout_us, const pg_uuid_t *holder)
{
	char	   *name = lock_name(source, key);
	char	   *why = holder ?
		psprintf("saga %s has the semantic lock on %s", uuid_text(holder), name) :
		psprintf("another saga waits for the semantic lock on %s", name);

	if (!wanted.set)
	{
		wanted.source = source;
		wanted.key = MemoryContextStrdup(TopMemoryContext, key);
		wanted.why = MemoryContextStrdup(TopMemoryContext, why);
		wanted.timeout_us = timeout_us;
		wanted.set = true;
	}
	saga_lock_raise();
	pg_unreachable();
}

/* Raise what the action waits for, if it does. */
void
saga_lock_raise(void)
{
	if (wanted.set)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_TRY_AGAIN),
				 errmsg("%s", wanted.why)));
}

/* saga.semantic_lock(source regclass, key text, policy text, timeout interval) */
Datum
saga_semantic_lock(PG_FUNCTION_ARGS)
{
	SagaLocalAction *action;
	Oid			source;
	char	   *key;
	char	   *policy;
	int64		timeout_us = -1;
	pg_uuid_t  *holder;
	pg_uuid_t  *next;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table, key and policy of a semantic lock must not be null")));
	action = saga_local_require("saga.semantic_lock", true);
	source = PG_GETARG_OID(0);
	key = text_to_cstring(PG_GETARG_TEXT_PP(1));
	policy = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (strcmp(policy, "wait") != 0 && strcmp(policy, "fail") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized policy: \"%s\"", policy),
				 errhint("Policies are wait and fail.")));
	if (!PG_ARGISNULL(3))
		timeout_us = Max(0, DatumGetInt64(DirectFunctionCall2(timestamptz_pl_interval,
															   TimestampTzGetDatum(0),
															   PG_GETARG_DATUM(3))));
	check_source(source, key);

	SPI_connect();
	holder = holder_of(source, key, &action->saga_id);
	if (holder && memcmp(holder, &action->saga_id, sizeof(*holder)) == 0)
	{
		action->took = true;	/* it may have been handed over */
		SPI_finish();
		PG_RETURN_VOID();
	}
	if (action->op == SAGA_OP_UNDO)
		saga_local_require("saga.semantic_lock", false);
	if (holder && (action->alone || strcmp(policy, "fail") == 0))
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DECLINED),
				 errmsg("saga %s has the semantic lock on %s", uuid_text(holder),
						lock_name(source, key))));
	if (holder)
		wait_for(source, key, timeout_us, holder);

	/* somebody is taking it, or those that wait come first */
	if (!take_tag(source, key))
		wait_for(source, key, timeout_us, NULL);
	holder = holder_of(source, key, &action->saga_id);
	next = holder ? NULL : first_waiter(source, key, one_id(&action->saga_id));
	if (holder || next)
		wait_for(source, key, timeout_us, holder);
	set_holder(source, key, &action->saga_id);
	(void) leave_queue(source, key, &action->saga_id);
	action->took = true;
	SPI_finish();
	PG_RETURN_VOID();
}

/* saga.semantic_unlock(source regclass, key text) -> boolean */
Datum
saga_semantic_unlock(PG_FUNCTION_ARGS)
{
	SagaLocalAction *action = saga_local_require("saga.semantic_unlock", true);
	Oid			source = PG_GETARG_OID(0);
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(1));
	pg_uuid_t  *holder;
	bool		ours;

	SPI_connect();
	holder = holder_of(source, key, &action->saga_id);
	ours = holder && memcmp(holder, &action->saga_id, sizeof(*holder)) == 0;
	if (ours)
		release_one(source, key, one_id(&action->saga_id));
	SPI_finish();
	PG_RETURN_BOOL(ours);
}

/* ------------------------------------------------------------- waiting */

/* Into the queue, or back to the place it has; since when it waits. */
static TimestampTz
take_place(const SagaLocalAction *action)
{
	static SagaOwnQuery query = {
		NULL,
		"INSERT INTO saga.semantic_lock_waiter (source, key, saga, step) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (source, key, saga, step) DO UPDATE SET step = excluded.step RETURNING since",
		4, {OIDOID, TEXTOID, UUIDOID, INT4OID}
	};
	Datum		values[4];
	bool		isnull;

	values[0] = ObjectIdGetDatum(wanted.source);
	values[1] = CStringGetTextDatum(wanted.key);
	values[2] = UUIDPGetDatum(&action->saga_id);
	values[3] = Int32GetDatum(action->step);
	saga_own_query(&query, values, NULL);
	return DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											 1, &isnull));
}

/*
 * Whom a saga waits for, and who waits for it: for the holder of a lock, for a
 * sub-saga.  OFFSET 0 has each looked up by index, however little the planner
 * knows of these tables.
 */
#define WAITS_FOR(saga) \
	"LATERAL (SELECT l.saga AS id FROM saga.semantic_lock_waiter w" \
	" JOIN saga.semantic_lock l ON l.source = w.source AND l.key = w.key" \
	" JOIN saga.instance i ON i.id = w.saga" \
	" WHERE w.saga = " saga " AND l.saga <> w.saga AND i.direction = 'forward' AND i.ended_at IS NULL" \
	" UNION ALL SELECT c.id FROM saga.instance c WHERE c.parent_id = " saga " AND c.ended_at IS NULL" \
	" OFFSET 0) x"
#define IS_AWAITED_BY(saga) \
	"LATERAL (SELECT w.saga AS id FROM saga.semantic_lock l" \
	" JOIN saga.semantic_lock_waiter w ON w.source = l.source AND w.key = l.key" \
	" JOIN saga.instance i ON i.id = w.saga" \
	" WHERE l.saga = " saga " AND l.saga <> w.saga AND i.direction = 'forward' AND i.ended_at IS NULL" \
	" UNION ALL SELECT c.parent_id FROM saga.instance c WHERE c.id = " saga " AND c.parent_id IS NOT NULL" \
	" OFFSET 0) x"
#define DOWN \
	"down AS (SELECT x.id FROM " WAITS_FOR("$1") \
	" UNION SELECT x.id FROM down d CROSS JOIN " WAITS_FOR("d.id") ")"

/* Does anybody wait for this saga, whom it waits for in turn? */
static bool
in_circle(const pg_uuid_t *saga)
{
	static SagaOwnQuery awaited = {
		NULL,
		"SELECT FROM " IS_AWAITED_BY("$1") " LIMIT 1",
		1, {UUIDOID}
	};
	static SagaOwnQuery circle = {
		NULL,
		"WITH RECURSIVE " DOWN " SELECT FROM down WHERE id = $1",
		1, {UUIDOID}
	};
	Datum		value = UUIDPGetDatum(saga);

	return saga_own_query(&awaited, &value, NULL) > 0 &&
		saga_own_query(&circle, &value, NULL) > 0;
}

/*
 * The youngest of the sagas that wait for each other in a circle with this
 * one; NULL: there is no circle.  Ids ascend with the time of start.
 */
static pg_uuid_t *
youngest_in_circle(const pg_uuid_t *saga)
{
	static SagaOwnQuery query = {
		NULL,
		"WITH RECURSIVE " DOWN ","
		" up AS (SELECT x.id FROM " IS_AWAITED_BY("$1")
		" UNION SELECT x.id FROM up u CROSS JOIN " IS_AWAITED_BY("u.id") ")"
		" SELECT id FROM down WHERE id IN (SELECT id FROM up) ORDER BY id DESC LIMIT 1",
		1, {UUIDOID}
	};
	Datum		value = UUIDPGetDatum(saga);

	if (!in_circle(saga))
		return NULL;
	saga_own_query(&query, &value, NULL);
	return first_uuid();
}

static void
wake_all_steps(const pg_uuid_t *saga, const char *note)
{
	static SagaOwnQuery query = {
		NULL,
		"SELECT coalesce(pg_catalog.array_agg(step), '{}') FROM saga.semantic_lock_waiter WHERE saga = $1",
		1, {UUIDOID}
	};
	Datum		value = UUIDPGetDatum(saga);
	bool		isnull;

	saga_own_query(&query, &value, NULL);
	wake_steps(saga, DatumGetArrayTypePCopy(SPI_getbinval(SPI_tuptable->vals[0],
														  SPI_tuptable->tupdesc, 1, &isnull)),
			   note);
}

static void
decline(const SagaLocalAction *action, SagaLockWait *wait, char *message)
{
	(void) leave_queue(wanted.source, wanted.key, &action->saga_id);
	wait->answer = SAGA_ANSWER_DECLINED;
	wait->message = MemoryContextStrdup(TopTransactionContext, message);
}

void
saga_lock_queue(const SagaLocalAction *action, SagaLockWait *wait)
{
	Oid			source = wanted.source;
	char	   *key = wanted.key;
	char	   *name = lock_name(source, key);
	pg_uuid_t  *holder;
	pg_uuid_t  *victim;
	int64		waited;
	bool		tagged;
	bool		ours;

	memset(wait, 0, sizeof(*wait));
	wait->answer = SAGA_ANSWER_TRANSIENT;

	SPI_connect();
	/* of two that close a circle the second sees the first */
	tagged = take_tag(InvalidOid, "queue");
	waited = GetCurrentTimestamp() - take_place(action);
	tagged &= take_tag(source, key);
	if (tagged && holder_of(source, key, &action->saga_id) == NULL)
	{
		/* it has just become free: whoever has waited longest gets it */
		pg_uuid_t  *next = first_waiter(source, key, PointerGetDatum(construct_empty_array(UUIDOID)));

		if (next)
			hand_over(source, key, next);
	}
	holder = holder_of(source, key, &action->saga_id);
	ours = holder && memcmp(holder, &action->saga_id, sizeof(*holder)) == 0;
	victim = youngest_in_circle(&action->saga_id);
	if (wanted.timeout_us >= 0 && waited >= wanted.timeout_us && holder && !ours)
		decline(action, wait, psprintf("saga %s still has the semantic lock on %s",
									   uuid_text(holder), name));
	else if (victim && memcmp(victim, &action->saga_id, sizeof(*victim)) == 0)
		decline(action, wait, psprintf("deadlock: saga %s has the semantic lock on %s, and waits for this saga",
									   holder ? uuid_text(holder) : "?", name));
	else
	{
		if (victim)
			wake_all_steps(victim, "it waits in a circle of sagas, and is the youngest of them");
		wait->retry_ms = ours ? 1 : !tagged ? SOON_MS :
			(int) Max(FIRST_RETRY_MS, Min(LAST_RETRY_MS, waited / 1000));
		if (wanted.timeout_us >= 0)
			wait->retry_ms = (int) Max(1, Min(wait->retry_ms, (wanted.timeout_us - waited) / 1000 + 1));
	}
	SPI_finish();
}
