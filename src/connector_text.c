/*
 * connector_text.c
 *		Values, times and types as they are written to a PostgreSQL
 *		participant.
 *
 * Called by connector_call.c and connector_branch.c.  Pure but for palloc.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "pgtime.h"
#include "utils/timestamp.h"

#include "connector_libpq.h"

/* ---- texts ---- */

/* ISO in UTC whatever this session's settings; 0 and no end are infinity. */
void
saga_call_time_text(TimestampTz t, char *out, size_t size)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (t == 0 || TIMESTAMP_NOT_FINITE(t) ||
		timestamp2tm(t, NULL, &tm, &fsec, NULL, NULL) != 0)
		strlcpy(out, t == DT_NOBEGIN ? "-infinity" : "infinity", size);
	else
		snprintf(out, size, "%04d-%02d-%02d %02d:%02d:%02d.%06d+00",
				 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
				 tm.tm_sec, fsec);
}

char *
saga_call_array_text(int n, char **values)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&buf, ',');
		if (values[i] == NULL)
		{
			appendStringInfoString(&buf, "NULL");
			continue;
		}
		appendStringInfoChar(&buf, '"');
		for (const char *p = values[i]; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&buf, '\\');
			appendStringInfoChar(&buf, *p);
		}
		appendStringInfoChar(&buf, '"');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* ---- types ---- */

/*
 * Only types whose OID was assigned by hand are the same in every server; of
 * those, one that is not declared is 0 and inferred.
 */
Oid *
saga_wire_types(const SagaTemplate *tmpl)
{
	Oid		   *types = palloc0(sizeof(Oid) * Max(tmpl->nparams, 1));

	for (int i = 0; i < tmpl->nparams; i++)
	{
		Oid			type = tmpl->params[i].bind_type;

		types[i] = type < FirstGenbkiObjectId ? type : InvalidOid;
	}
	return types;
}

/* SQL's PREPARE wants names; those not here are inferred as well. */
const char *
saga_call_type_name(Oid type)
{
	switch (type)
	{
		case BOOLOID:
			return "boolean";
		case INT2OID:
			return "smallint";
		case INT4OID:
			return "integer";
		case INT8OID:
			return "bigint";
		case NUMERICOID:
			return "numeric";
		case FLOAT4OID:
			return "real";
		case FLOAT8OID:
			return "double precision";
		case TEXTOID:
			return "text";
		case VARCHAROID:
			return "character varying";
		case DATEOID:
			return "date";
		case TIMESTAMPOID:
			return "timestamp without time zone";
		case TIMESTAMPTZOID:
			return "timestamp with time zone";
		case INTERVALOID:
			return "interval";
		case UUIDOID:
			return "uuid";
		case JSONOID:
			return "json";
		case JSONBOID:
			return "jsonb";
		case BYTEAOID:
			return "bytea";
	}
	return "unknown";
}
