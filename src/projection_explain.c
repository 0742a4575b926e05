/*
 * projection_explain.c
 *		saga.explain_projection(): how a query would be kept up.
 *
 * Runs in sessions.  Only asks the planner; makes and changes nothing.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "projection_plan.h"

PG_FUNCTION_INFO_V1(saga_explain_projection);

/* Does the WAL hold all that a projection uses of an old row? */
static bool
identity_suffices(SagaSource *source)
{
	Relation	rel = table_open(source->relid, AccessShareLock);
	bool		result = rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL;

	if (!result)
	{
		Bitmapset  *identity = RelationGetIndexAttrBitmap(rel,
														  INDEX_ATTR_BITMAP_IDENTITY_KEY);
		int			column = -1;

		result = identity != NULL;
		while ((column = bms_next_member(source->columns, column)) >= 0)
			if (!bms_is_member(column - FirstLowInvalidHeapAttributeNumber,
							   identity))
				result = false;
	}
	table_close(rel, NoLock);
	return result;
}

static char *
lines(List *texts)
{
	StringInfoData buf;
	ListCell   *lc;

	if (texts == NIL)
		return NULL;
	initStringInfo(&buf);
	foreach(lc, texts)
		appendStringInfo(&buf, "%s%s;", lc == list_head(texts) ? "" : "\n",
						 (char *) lfirst(lc));
	return buf.data;
}

/* saga.explain_projection(query text) */
Datum
saga_explain_projection(PG_FUNCTION_ARGS)
{
	char	   *query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SagaProgram *program;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	program = saga_program_build(query, 0, NIL);
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		List	   *identity = NIL;
		char	   *texts[5];
		Datum		values[6];
		bool		nulls[6] = {0};
		int			i = -1;

		while ((i = bms_next_member(stage->sources, i)) >= 0)
		{
			SagaSource *source = list_nth(program->sources, i);

			if (!identity_suffices(source))
				identity = lappend(identity,
								   psprintf("ALTER TABLE %s REPLICA IDENTITY FULL",
											source->name));
		}
		texts[0] = pstrdup(saga_class_name(stage->class));
		texts[1] = stage->what;
		texts[2] = stage->reason;
		texts[3] = lines(stage->advice);
		texts[4] = lines(identity);
		values[0] = Int32GetDatum(stage->number);
		for (i = 0; i < 5; i++)
		{
			nulls[i + 1] = texts[i] == NULL;
			values[i + 1] = nulls[i + 1] ? (Datum) 0 :
				CStringGetTextDatum(texts[i]);
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
