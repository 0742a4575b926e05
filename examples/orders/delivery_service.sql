-- The delivery service.  "No courier" is a plain RAISE EXCEPTION (P0001),
-- which counts as declined.  Here the administrator installs the barrier, so
-- the role that the coordinator comes as has no right to create anything.
\set ON_ERROR_STOP 1
CREATE ROLE delivery_owner NOLOGIN;
CREATE ROLE delivery_saga LOGIN PASSWORD :'password';
CREATE SCHEMA delivery AUTHORIZATION delivery_owner;
SET ROLE delivery_owner;

CREATE TABLE delivery.courier (
  name  text PRIMARY KEY,
  city  text NOT NULL
);
CREATE INDEX ON delivery.courier (city);

CREATE TABLE delivery.shipment (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id   bigint NOT NULL,
  payment_id bigint NOT NULL,
  courier    text NOT NULL REFERENCES delivery.courier,
  status     text NOT NULL CHECK (status IN ('arranged', 'cancelled'))
);
CREATE INDEX ON delivery.shipment (order_id);

CREATE TABLE delivery.effect (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  kind     text NOT NULL CHECK (kind IN ('arrange', 'cancel')),
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION delivery.keep_effect() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'effects are only ever added';
END
$$;
CREATE TRIGGER keep_effect BEFORE UPDATE OR DELETE OR TRUNCATE
  ON delivery.effect EXECUTE FUNCTION delivery.keep_effect();

CREATE FUNCTION delivery.arrange(order_id bigint, city text,
                                 payment_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = delivery, pg_temp AS $$
DECLARE
  chosen text;
BEGIN
  SELECT name INTO chosen FROM courier c WHERE c.city = $2
   ORDER BY hashtext(c.name || $1) LIMIT 1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no courier goes to %', $2;
  END IF;
  INSERT INTO shipment (order_id, payment_id, courier, status)
  VALUES ($1, $3, chosen, 'arranged');
  INSERT INTO effect (order_id, kind) VALUES ($1, 'arrange');
  RETURN chosen;
END
$$;

CREATE FUNCTION delivery.cancel_delivery(order_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = delivery, pg_temp AS $$
BEGIN
  UPDATE shipment s SET status = 'cancelled'
   WHERE s.order_id = $1 AND s.status = 'arranged';
  INSERT INTO effect (order_id, kind) VALUES ($1, 'cancel');
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA delivery FROM PUBLIC;
GRANT USAGE ON SCHEMA delivery TO delivery_saga;
GRANT EXECUTE ON FUNCTION delivery.arrange, delivery.cancel_delivery
  TO delivery_saga;

-- Couriers everywhere but in Atlantis.
INSERT INTO delivery.courier
SELECT city || '-courier-' || n, city
  FROM unnest('{Lisbon,Oslo,Utrecht,Vienna}'::text[]) city,
       generate_series(1, 3) n;
RESET ROLE;
