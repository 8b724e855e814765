-- One row is one page, with its share of all events.
CREATE VIEW shares AS
SELECT page, events, round(100.0 * events / sum(events) OVER (), 1) AS percent
FROM   pages
ORDER  BY events DESC, page;

-- One row is the page with the most events.
CREATE VIEW top_page AS
SELECT page, percent FROM shares ORDER BY percent DESC LIMIT 1;

-- One row is one page with both its halves.
CREATE VIEW halves AS
SELECT m.page,
       m.events,
       coalesce(b.events, 0) + coalesce(s.events, 0) AS added
FROM   pages AS m
LEFT   JOIN batch.pages AS b ON b.page = m.page
LEFT   JOIN speed.pages AS s ON s.page = m.page;

-- One row is one page that nobody else knows, and its records that came twice.
CREATE VIEW twice AS
WITH pages AS (SELECT page, count(*) AS records FROM raw.events_duplicates GROUP BY page)
SELECT page, records FROM pages WHERE page IN (SELECT page FROM public.busy);

-- One row is one stream, and whether its books balance.
CREATE VIEW books AS
SELECT stream, bool_and(balances) AS balance, sum(passed) - sum(counted) AS not_counted
FROM   system.conservation
GROUP  BY stream;

-- One row is one reason for which records were rejected.
CREATE VIEW reasons AS
SELECT split_part(_reason, ':', 1) AS reason, count(*) AS records
FROM   quarantine.events
GROUP  BY 1;
