/*
 * result.c
 *		What a local action returned, as the JSON that is stored.
 *
 * Called by executor.c right after an SPI call.  Mirrors what
 * saga_participant.run() does at a PostgreSQL participant.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "errors.h"
#include "guc.h"
#include "result.h"

/* A row as a JSON object, by the server's own conversion. */
static Jsonb *
row_as_object(HeapTuple tuple, TupleDesc desc)
{
	Datum		row = heap_copy_tuple_as_datum(tuple, BlessTupleDesc(desc));
	Datum		json = DirectFunctionCall1(row_to_json, row);

	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(TextDatumGetCString(json))));
}

/* The one column of a row, without its name. */
static Jsonb *
column_as_value(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		datum = heap_getattr(tuple, 1, desc, &isnull);
	Oid			type = TupleDescAttr(desc, 0)->atttypid;
	JsonbValue	value;
	Jsonb	   *object;
	JsonbIterator *it;

	if (isnull || type == VOIDOID)
		return NULL;
	switch (type)
	{
		case JSONBOID:
			return DatumGetJsonbPCopy(datum);
		case BOOLOID:
			value.type = jbvBool;
			value.val.boolean = DatumGetBool(datum);
			return JsonbValueToJsonb(&value);
		case INT4OID:
		case INT8OID:
			value.type = jbvNumeric;
			value.val.numeric = type == INT4OID ?
				int64_to_numeric(DatumGetInt32(datum)) : int64_to_numeric(DatumGetInt64(datum));
			return JsonbValueToJsonb(&value);
		case TEXTOID:
			value.type = jbvString;
			value.val.string.val = TextDatumGetCString(datum);
			value.val.string.len = strlen(value.val.string.val);
			return JsonbValueToJsonb(&value);
		default:
			break;
	}
	object = row_as_object(tuple, desc);
	it = JsonbIteratorInit(&object->root);
	(void) JsonbIteratorNext(&it, &value, true);	/* the object */
	(void) JsonbIteratorNext(&it, &value, true);	/* its only key */
	(void) JsonbIteratorNext(&it, &value, true);	/* the value */
	return value.type == jbvNull ? NULL : JsonbValueToJsonb(&value);
}

static Jsonb *
one_row(HeapTuple tuple, TupleDesc desc)
{
	return desc->natts == 1 ? column_as_value(tuple, desc) : row_as_object(tuple, desc);
}

static Jsonb *
all_rows(SPITupleTable *table, uint64 n)
{
	JsonbParseState *state = NULL;
	JsonbValue *array;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		Jsonb	   *row = one_row(table->vals[i], table->tupdesc);
		JsonbValue	value;

		if (row == NULL)
			value.type = jbvNull;
		else if (!JB_ROOT_IS_SCALAR(row) ||
				 !JsonbExtractScalar(&row->root, &value))
		{
			value.type = jbvBinary;
			value.val.binary.data = &row->root;
			value.val.binary.len = VARSIZE(row) - VARHDRSZ;
		}
		pushJsonbValue(&state, WJB_ELEM, &value);
		CHECK_FOR_INTERRUPTS();
	}
	array = pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	return JsonbValueToJsonb(array);
}

static Jsonb *
row_count(uint64 n)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	value;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	key.type = jbvString;
	key.val.string.val = "rows";
	key.val.string.len = 4;
	pushJsonbValue(&state, WJB_KEY, &key);
	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric((int64) n);
	pushJsonbValue(&state, WJB_VALUE, &value);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

static bool
counts_rows(int rc)
{
	return rc == SPI_OK_INSERT || rc == SPI_OK_UPDATE || rc == SPI_OK_DELETE ||
		rc == SPI_OK_MERGE;
}

Jsonb *
saga_result_from_spi(const SagaCall *call, int rc, MemoryContext context)
{
	MemoryContext old;
	Jsonb	   *result = NULL;
	uint64		n = SPI_processed;
	SPITupleTable *table = SPI_tuptable;

	if (call->expect_rows >= 0 && n != (uint64) call->expect_rows)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DECLINED),
				 errmsg("the action gave " UINT64_FORMAT " rows, expected %d",
						n, call->expect_rows)));
	if (call->shape == SAGA_RESULT_NONE)
		return NULL;

	old = MemoryContextSwitchTo(context);
	if (counts_rows(rc))
		result = row_count(n);
	else if (table != NULL && call->shape == SAGA_RESULT_ROWS)
		result = all_rows(table, table->numvals);
	else if (table != NULL && table->numvals > 1 && call->shape == SAGA_RESULT_ONE)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_RESULT_SHAPE),
				 errmsg("the action returned " UINT64_FORMAT " rows where at most one is expected",
						(uint64) table->numvals),
				 errhint("Give the step result => 'rows', 'first' or 'none'.")));
	else if (table != NULL && table->numvals > 0)
		result = one_row(table->vals[0], table->tupdesc);

	if (result && VARSIZE(result) > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("the result of the action is larger than %d bytes", saga_max_payload),
				 errdetail("It has %zu bytes.", (Size) VARSIZE(result)),
				 errhint("Return less, or increase saga.max_payload.")));
	if (result && OidIsValid(call->returns))
	{
		char	   *problem = NULL;
		char	   *text = JsonbToCString(NULL, &result->root, VARSIZE(result));

		result = saga_result_from_text(call, text, &problem);
		if (problem)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("the result does not have the declared type: %s", problem)));
	}
	MemoryContextSwitchTo(old);
	return result;
}
