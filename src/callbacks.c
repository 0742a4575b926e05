/*
 * callbacks.c
 *		Steps whose answer comes later: tokens, saga.complete_step(),
 *		fail_step(), heartbeat(), and saga.take() for steps in a queue.
 *
 * A token names its call by itself (saga, operation, run of the step) and is
 * sealed with a secret of this database, so no table of tokens is kept: whoever
 * has one may answer that call and nothing else.  Answers go through saga.inbox;
 * a unique index there, and the log, see to it that the first one counts.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "callbacks.h"
#include "compat.h"
#include "errors.h"
#include "guc.h"
#include "rights.h"
#include "rows.h"
#include "saga.h"
#include "spi_util.h"
#include "verbs.h"

PG_FUNCTION_INFO_V1(saga_complete_step);
PG_FUNCTION_INFO_V1(saga_fail_step);
PG_FUNCTION_INFO_V1(saga_heartbeat);
PG_FUNCTION_INFO_V1(saga_accepted);
PG_FUNCTION_INFO_V1(saga_take);

#define SEAL_BYTES		16		/* of the HMAC-SHA-256 */
#define SECRET_COLUMN	10		/* of saga.identity */
#define MAX_TOKEN		4096

/* The bytes of a token: seal, saga, operation, name of the run. */
#define TOKEN_HEAD		(SEAL_BYTES + UUID_LEN + 1)

bool		saga_accepted_allowed = false;
bool		saga_accepted_now = false;

typedef struct Token
{
	pg_uuid_t	saga_id;
	SagaOp		op;
	char	   *step;
} Token;

/* --------------------------------------------------------------- tokens */

static const char alphabet[] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* Base64 for URLs (RFC 4648, 5), without padding. */
static char *
encode(const uint8 *bytes, int n)
{
	char	   *out = palloc(n * 4 / 3 + 3);
	char	   *p = out;

	for (int i = 0; i < n; i += 3)
	{
		uint32		group = bytes[i] << 16 |
			(i + 1 < n ? bytes[i + 1] << 8 : 0) | (i + 2 < n ? bytes[i + 2] : 0);

		*p++ = alphabet[group >> 18];
		*p++ = alphabet[(group >> 12) & 63];
		if (i + 1 < n)
			*p++ = alphabet[(group >> 6) & 63];
		if (i + 2 < n)
			*p++ = alphabet[group & 63];
	}
	*p = '\0';
	return out;
}

/* Number of bytes, or -1. */
static int
decode(const char *text, uint8 *out)
{
	uint32		group = 0;
	int			bits = 0;
	int			n = 0;

	for (; *text; text++)
	{
		const char *at = strchr(alphabet, *text);

		if (at == NULL)
			return -1;
		group = (group << 6) | (uint32) (at - alphabet);
		bits += 6;
		if (bits >= 8)
		{
			bits -= 8;
			out[n++] = (uint8) (group >> bits);
			group &= (1 << bits) - 1;
		}
	}
	return group == 0 ? n : -1;
}

/* This database's secret; read once for each life of the extension. */
static bytea *
secret(void)
{
	static bytea *cached = NULL;
	static Oid	cached_for = InvalidOid;
	Oid			relation = saga_relation_oid("identity");
	SagaTable  *table;
	Datum		key = BoolGetDatum(true);
	Datum		values[SAGA_MAX_COLUMNS];
	bool		nulls[SAGA_MAX_COLUMNS];
	bytea	   *found;
	Size		size;

	if (cached && cached_for == relation)
		return cached;
	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("identity", AccessShareLock);
	if (!saga_table_fetch(table, &key, values, nulls))
		elog(ERROR, "saga.identity is empty");
	found = DatumGetByteaPP(values[SECRET_COLUMN]);
	size = VARSIZE_ANY_EXHDR(found) + VARHDRSZ;
	cached_for = InvalidOid;
	cached = cached ? repalloc(cached, size) : MemoryContextAlloc(TopMemoryContext, size);
	SET_VARSIZE(cached, size);
	memcpy(VARDATA(cached), VARDATA_ANY(found), size - VARHDRSZ);
	cached_for = relation;
	saga_table_close(table);
	PopActiveSnapshot();
	return cached;
}

static void
seal(const uint8 *bytes, int n, uint8 *out)
{
	pg_hmac_ctx *hmac = pg_hmac_create(PG_SHA256);
	bytea	   *key = secret();
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	if (hmac == NULL ||
		pg_hmac_init(hmac, (uint8 *) VARDATA(key), VARSIZE(key) - VARHDRSZ) < 0 ||
		pg_hmac_update(hmac, bytes, n) < 0 ||
		pg_hmac_final(hmac, digest, sizeof(digest)) < 0)
	{
		if (hmac)
			pg_hmac_free(hmac);
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a token")));
	}
	pg_hmac_free(hmac);
	memcpy(out, digest, SEAL_BYTES);
}

char *
saga_callback_token(const pg_uuid_t *saga_id, const char *step, SagaOp op)
{
	int			n = TOKEN_HEAD + (int) strlen(step);
	uint8	   *bytes = palloc(n);

	memcpy(bytes + SEAL_BYTES, saga_id, UUID_LEN);
	bytes[SEAL_BYTES + UUID_LEN] = op == SAGA_OP_UNDO ? 'u' : 'a';
	memcpy(bytes + TOKEN_HEAD, step, n - TOKEN_HEAD);
	seal(bytes + SEAL_BYTES, n - SEAL_BYTES, bytes);
	return encode(bytes, n);
}

static void
open_token(text *arg, Token *token)
{
	char	   *given = text_to_cstring(arg);
	uint8	   *bytes = palloc(strlen(given) + 1);
	uint8		expected[SEAL_BYTES];
	int			differs = 1;
	int			n = strlen(given) > MAX_TOKEN ? -1 : decode(given, bytes);

	if (n > TOKEN_HEAD)
	{
		/* in constant time */
		seal(bytes + SEAL_BYTES, n - SEAL_BYTES, expected);
		differs = 0;
		for (int i = 0; i < SEAL_BYTES; i++)
			differs |= expected[i] ^ bytes[i];
	}
	if (differs)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_TOKEN),
				 errmsg("this is no token of a step"),
				 errhint("Use the value of :callback_token, of the header Saga-Callback-Token or of saga.take() as it is; one from before a restore from a dump is void.")));
	memcpy(&token->saga_id, bytes + SEAL_BYTES, UUID_LEN);
	token->op = bytes[SEAL_BYTES + UUID_LEN] == 'u' ? SAGA_OP_UNDO : SAGA_OP_ACTION;
	token->step = pnstrdup((char *) bytes + TOKEN_HEAD, n - TOKEN_HEAD);
}

/* False if its saga has ended. */
static bool
find_saga(const Token *token)
{
	SagaLooked	saga;

	if (!saga_look_quietly(&token->saga_id, &saga))
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_TOKEN),
				 errmsg("the saga of this token is no more")));
	return !saga.ended;
}

/* -------------------------------------------------------------- answers */

/*
 * Does the call still wait for an answer?  What its last record says; there is
 * none of a local action that is being run.
 */
static bool
is_awaited(const Token *token)
{
	Oid			types[3] = {UUIDOID, TEXTOID, TEXTOID};
	Datum		values[3];
	Datum		first;
	bool		isnull;

	values[0] = UUIDPGetDatum(&token->saga_id);
	values[1] = CStringGetTextDatum(token->step);
	values[2] = CStringGetTextDatum(saga_op_name(token->op));
	saga_spi_own("SELECT kind IN ('intent', 'accepted', 'retried') OR (kind = 'failed' AND due IS NOT NULL)"
				 " FROM saga.log_record WHERE saga_id = $1 AND step = $2 AND operation = $3"
				 " ORDER BY seq DESC LIMIT 1",
				 3, types, values, NULL, &first, &isnull);
	return isnull || DatumGetBool(first);
}

/* No longer to be taken, and no progress to be seen. */
static void
forget_offer(const Token *token)
{
	Oid			types[3] = {UUIDOID, TEXTOID, TEXTOID};
	Datum		values[3];

	values[0] = UUIDPGetDatum(&token->saga_id);
	values[1] = CStringGetTextDatum(token->step);
	values[2] = CStringGetTextDatum(saga_op_name(token->op));
	saga_spi_own("WITH offer AS (DELETE FROM saga.queued_step"
				 "  WHERE saga_id = $1 AND step = $2 AND operation = $3)"
				 " DELETE FROM saga.step_progress WHERE saga_id = $1 AND step = $2 AND operation = $3",
				 3, types, values, NULL, NULL, NULL);
}

static bool
answer(const Token *token, const char *verb, const char *kind, Datum result,
	   bool no_result, text *note)
{
	Oid			types[9] = {UUIDOID, INT2OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID};
	Datum		values[9];
	char		nulls[10] = "         ";
	Datum		inbox_id;
	bool		isnull;

	if (!find_saga(token))
		return false;
	values[0] = UUIDPGetDatum(&token->saga_id);
	values[1] = Int16GetDatum(saga_bucket(&token->saga_id));
	values[2] = CStringGetTextDatum(verb);
	values[3] = CStringGetTextDatum(token->step);
	values[4] = CStringGetTextDatum(saga_op_name(token->op));
	values[5] = kind ? CStringGetTextDatum(kind) : (Datum) 0;
	nulls[5] = kind ? ' ' : 'n';
	values[6] = result;
	nulls[6] = no_result ? 'n' : ' ';
	values[7] = CStringGetTextDatum(saga_actor());
	values[8] = PointerGetDatum(note);
	nulls[8] = note ? ' ' : 'n';

	/* waits for another answer that is not committed */
	if (saga_spi_own("INSERT INTO saga.inbox (saga_id, bucket, verb, step, operation, kind, result, actor, note)"
					 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
					 " ON CONFLICT (saga_id, step, operation) WHERE verb IN ('complete', 'fail')"
					 " DO NOTHING RETURNING id",
					 9, types, values, nulls, &inbox_id, &isnull) == 0)
		return false;
	if (!is_awaited(token))
	{
		Oid			type = INT8OID;

		saga_spi_own("DELETE FROM saga.inbox WHERE id = $1", 1, &type, &inbox_id,
					 NULL, NULL, NULL);
		return false;
	}
	saga_wake_at_commit(&token->saga_id, DatumGetInt64(inbox_id), 0);
	return true;
}

static void
check_call(FunctionCallInfo fcinfo, const char *function, Token *token)
{
	saga_require_preload();
	PreventCommandIfReadOnly(function);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_TOKEN),
				 errmsg("the token must not be null")));
	open_token(PG_GETARG_TEXT_PP(0), token);
}

static void
check_size(FunctionCallInfo fcinfo, const char *what)
{
	if (!PG_ARGISNULL(1) && VARSIZE_ANY(PG_GETARG_VARLENA_PP(1)) > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("%s is larger than %d bytes", what, saga_max_payload),
				 errhint("Send less, or increase saga.max_payload.")));
}

/* complete_step(token, result) -> boolean */
Datum
saga_complete_step(PG_FUNCTION_ARGS)
{
	Token		token;
	bool		counts;

	check_call(fcinfo, "saga.complete_step()", &token);
	check_size(fcinfo, "the result");
	counts = answer(&token, "complete", NULL, PG_GETARG_DATUM(1), PG_ARGISNULL(1), NULL);
	if (counts)
		forget_offer(&token);
	PG_RETURN_BOOL(counts);
}

/* fail_step(token, error, kind) -> boolean */
Datum
saga_fail_step(PG_FUNCTION_ARGS)
{
	Token		token;
	char	   *kind = PG_ARGISNULL(2) ? "declined" : text_to_cstring(PG_GETARG_TEXT_PP(2));
	bool		counts;

	check_call(fcinfo, "saga.fail_step()", &token);
	check_size(fcinfo, "the error");
	if (strcmp(kind, "declined") != 0 && strcmp(kind, "transient") != 0 &&
		strcmp(kind, "broken") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid kind of failure: \"%s\"", kind),
				 errhint("Use 'declined', 'transient' or 'broken'.")));
	counts = answer(&token, "fail", kind, (Datum) 0, true,
					PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
	if (counts)
		forget_offer(&token);
	PG_RETURN_BOOL(counts);
}

/* heartbeat(token, progress) -> boolean */
Datum
saga_heartbeat(PG_FUNCTION_ARGS)
{
	Token		token;
	Oid			types[6] = {UUIDOID, TEXTOID, TEXTOID, JSONBOID, INT2OID, TEXTOID};
	Datum		values[6];
	char		nulls[7] = "      ";
	Datum		inbox_id;
	bool		isnull;

	check_call(fcinfo, "saga.heartbeat()", &token);
	check_size(fcinfo, "the progress");
	if (!find_saga(&token) || !is_awaited(&token))
		PG_RETURN_BOOL(false);
	values[0] = UUIDPGetDatum(&token.saga_id);
	values[1] = CStringGetTextDatum(token.step);
	values[2] = CStringGetTextDatum(saga_op_name(token.op));
	values[3] = PG_GETARG_DATUM(1);
	nulls[3] = PG_ARGISNULL(1) ? 'n' : ' ';
	values[4] = Int16GetDatum(saga_bucket(&token.saga_id));
	values[5] = CStringGetTextDatum(saga_actor());
	saga_spi_own("INSERT INTO saga.step_progress AS p (saga_id, step, operation, progress)"
				 " VALUES ($1, $2, $3, $4) ON CONFLICT (saga_id, step, operation)"
				 " DO UPDATE SET progress = coalesce(excluded.progress, p.progress),"
				 "               at = pg_catalog.clock_timestamp()",
				 4, types, values, nulls, NULL, NULL);
	nulls[3] = ' ';
	saga_spi_own("INSERT INTO saga.inbox (saga_id, bucket, verb, step, operation, actor)"
				 " VALUES ($1, $5, 'heartbeat', $2, $3, $6) RETURNING id",
				 6, types, values, nulls, &inbox_id, &isnull);
	saga_wake_at_commit(&token.saga_id, DatumGetInt64(inbox_id), 0);
	PG_RETURN_BOOL(true);
}

/* accepted(): in a local action */
Datum
saga_accepted(PG_FUNCTION_ARGS)
{
	if (!saga_accepted_allowed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga.accepted() can only be called in a local action of a step with callback => true")));
	saga_accepted_now = true;
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- queues */

/* Names of the definitions whose steps the caller may take and answer. */
static Datum
definitions_to_signal(void)
{
	SagaUserSwitch saved;
	Oid			caller = GetUserId();
	Datum	   *names;
	int			n = 0;
	ArrayType  *array;
	Datum		result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	saga_as_extension_owner_begin(&saved);
	if (SPI_execute("SELECT DISTINCT name FROM saga.definition", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read saga.definition");
	saga_as_extension_owner_end(&saved);
	names = SPI_palloc(sizeof(Datum) * Max(SPI_processed, 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		if (saga_has_privilege(name, caller, "signal"))
			names[n++] = CStringGetTextDatum(name);
	}
	array = construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT);
	result = SPI_datumTransfer(PointerGetDatum(array), false, -1);
	SPI_finish();
	return result;
}

/* take(queue, n, visibility) -> (token, saga_id, step, input, attempt) */
Datum
saga_take(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[4] = {TEXTOID, INT4OID, INTERVALOID, TEXTARRAYOID};
	Datum		values[4];
	SagaUserSwitch saved;
	Interval	zero;

	saga_require_preload();
	PreventCommandIfReadOnly("saga.take()");
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue, n and visibility must not be null")));
	memset(&zero, 0, sizeof(zero));
	if (PG_GETARG_INT32(1) < 1 ||
		DatumGetBool(DirectFunctionCall2(interval_le, PG_GETARG_DATUM(2),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("n and visibility must be greater than 0")));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = definitions_to_signal();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	saga_as_extension_owner_begin(&saved);
	if (SPI_execute_with_args("WITH next AS (SELECT id FROM saga.queued_step"
							  "  WHERE queue = $1 AND visible_at <= pg_catalog.clock_timestamp()"
							  "    AND definition = ANY ($4)"
							  "  ORDER BY priority DESC, id LIMIT $2 FOR UPDATE SKIP LOCKED)"
							  " UPDATE saga.queued_step q"
							  " SET visible_at = pg_catalog.clock_timestamp() + $3, taken = q.taken + 1"
							  " FROM next WHERE q.id = next.id"
							  " RETURNING q.saga_id, q.step, q.operation, q.input, q.taken",
							  4, types, values, NULL, false, 0) != SPI_OK_UPDATE_RETURNING)
		elog(ERROR, "could not take from saga.queued_step");
	saga_as_extension_owner_end(&saved);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Datum		v[5];
		bool		n[5] = {0};
		pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(row, desc, 1, &n[1]));
		char	   *step = SPI_getvalue(row, desc, 2);

		v[0] = CStringGetTextDatum(saga_callback_token(id, step,
													   saga_op_from_name(SPI_getvalue(row, desc, 3))));
		v[1] = UUIDPGetDatum(id);
		v[2] = CStringGetTextDatum(step);
		v[3] = SPI_getbinval(row, desc, 4, &n[3]);
		v[4] = SPI_getbinval(row, desc, 5, &n[4]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
	}
	SPI_finish();
	return (Datum) 0;
}
